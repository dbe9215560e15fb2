"""Records the target's answers to a stream once; greedy decoding is lossless, so no drafter changes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from benchmarks.adaptation.streams import Prompt
from osd.config.paths import answers_dir
from osd.config.settings import Config
from osd.loading.resolve import ResolvedTarget
from osd.records.outcome import Outcome
from osd.text.codec import TextCodec
from trainer.offline.answers import AnswerFolder, answers_key, make_answers, open_answering


def record(
    config: Config,
    resolved: ResolvedTarget,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    on_progress: Callable[[int], None] = lambda made: None,
) -> list[Outcome]:
    """One answer to every prompt, from the cache in the state folder; missing ones are made now.

    The outcomes include all that any kind of drafter reads and learns from: hidden states and the target's top-K.

    Args:
        config: target, engine and outcomes sections are used.
        resolved: the target.
        prompts: in order.
        max_tokens: longest answer.
        temperature: 0 is greedy.
        on_progress: called with the number of answers made so far.

    Raises:
        OsdError: the target cannot be loaded.
    """
    codec = TextCodec.open(resolved.folder, resolved.target_id, config.target.max_context_tokens)
    ids = [codec.encode_chat(prompt.messages) for prompt in prompts]
    key = f"{answers_key(resolved.folder, ids, max_tokens)}-{config.target.dtype}"
    key += f"-{temperature:g}-{config.outcomes.top_k}" if temperature else ""
    folder = AnswerFolder(answers_dir(config.state_dir, resolved.target_id, key))
    if len(folder.numbers()) < len(prompts):
        engine, collector = open_answering(config)
        make_answers(
            engine,
            collector,
            folder,
            ids,
            num_answers=len(ids),
            max_tokens=max_tokens,
            temperature=temperature,
            on_progress=on_progress,
        )
    answers = sorted(folder, key=lambda answer: int(answer.request_id))
    return [
        msgspec.structs.replace(answer, domain=prompt.domain, request_id=f"{prompt.domain}-{answer.request_id}")
        for answer, prompt in zip(answers, prompts, strict=True)
    ]
