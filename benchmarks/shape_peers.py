"""The peers of `benchmarks.shapes`: transformers over the same random model, plain and with an assistant.

The assistant is a small LM whose passes run in full and whose outputs are replaced as those of osd's drafter are. Both
thus speculate with the same acceptance, and only the duration of a round differs.

Shapes: B rows, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.instruments import RoundEnds
from benchmarks.random_models import Shape, random_llama
from benchmarks.synthetic_drafter import spoilt

PEERS = ("generate", "assisted")


@dataclass(frozen=True, slots=True)
class Generated:
    """The result of `generate` for one batch."""

    answers: list[list[int]]
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Assistance:
    """The setup of `assisted`."""

    shape: Shape
    """Sizes of the small LM, which has the target's vocabulary."""
    length: int
    """Tokens proposed each round."""
    acceptance: float
    """Probability that a proposed token is right."""
    repeats: int
    """Timed answers; one more warms up."""
    seed: int
    """Of the assistant's weights, and of which tokens are wrong."""


@dataclass(slots=True)
class Assisted:
    """The sum of all rounds of assisted generation with a full-length proposal, except each answer's first."""

    num_rounds: int = 0
    num_committed: int = 0
    num_accepted: int = 0
    num_judged: int = 0
    """Proposed tokens up to and including each round's first wrong one."""
    decode_s: float = 0.0
    num_answers: int = 0
    num_equal: int = 0
    """Number of answers that equal those of plain `generate`."""

    def add(self, ends: RoundEnds, length: int) -> None:
        """Add the rounds of one answer; the last ones, which propose fewer tokens, are not timed."""
        full = sum(ends.num_tokens[-1] - num_tokens > length for num_tokens in ends.num_tokens)
        counts = [after - before for before, after in zip(ends.num_tokens[:full], ends.num_tokens[1:], strict=False)]
        self.num_rounds += full
        self.num_committed += sum(counts)
        self.num_accepted += sum(counts) - full
        self.num_judged += sum(min(count, length) for count in counts)
        self.decode_s += ends.at_s[full] - ends.at_s[0]

    def figures(self) -> dict[str, float]:
        """The figures for the report."""
        return {
            "assisted_tokens_per_s": round(self.num_committed / self.decode_s, 2),
            "assisted_acceptance": round(self.num_accepted / self.num_judged, 4),
            "assisted_acceptance_length": round(self.num_committed / self.num_rounds, 3),
            "assisted_equal_to_plain": round(self.num_equal / self.num_answers, 4),
        }


_FIGURES = (
    "generate_tokens_per_s",
    "assisted_tokens_per_s",
    "assisted_acceptance",
    "assisted_acceptance_length",
    "assisted_equal_to_plain",
)


def measure_peers(
    names: Sequence[str],
    model: Any,
    batches: Sequence[Sequence[Sequence[int]]],
    num_tokens: int,
    assistance: Assistance,
) -> tuple[list[dict[str, float | None]], dict[str, str]]:
    """Figures for every batch, None where a peer did not run; and the reason for each peer that failed.

    Args:
        names: of `PEERS`; "assisted" skips batches above one, since transformers speculates for one query at a time.
        model: the target.
        batches: the prompts of each batch.
        num_tokens: length of an answer.
        assistance: setup of "assisted".
    """
    found: list[dict[str, float | None]] = []
    missing: dict[str, str] = {}
    for prompts in batches:
        figures: dict[str, float | None] = dict.fromkeys(_FIGURES)
        generated: Generated | None = None
        for name in names:
            if name == "assisted" and len(prompts) > 1:
                continue
            try:
                generated = generated or generate(model, prompts, num_tokens)
                if name == "assisted":
                    figures |= assisted(model, prompts[0], generated.answers[0], assistance).figures()
                else:
                    figures["generate_tokens_per_s"] = round(generated.tokens_per_s, 2)
            except Exception as error:  # must not lose the figures of osd and other peers
                missing[name] = f"{type(error).__name__}: {error}"
        found.append(figures)
    return found, missing


def generate(model: Any, prompts: Sequence[Sequence[int]], num_tokens: int) -> Generated:
    """Plain greedy decoding; prefill and the first token are not timed."""
    _generate(model, prompts, 2)  # warms up
    answers, ends = _generate(model, prompts, num_tokens)
    decode_s = ends.at_s[-1] - ends.at_s[0]
    return Generated(answers, len(prompts) * (num_tokens - 1) / decode_s)


def assisted(model: Any, prompt: Sequence[int], answer: Sequence[int], assistance: Assistance) -> Assisted:
    """Assisted greedy generation of one answer, repeated with other tokens wrong each time.

    Args:
        model: the target.
        prompt: token ids.
        answer: the target's greedy answer.
        assistance: the setup.
    """
    assistant = random_llama(assistance.shape, model.device, assistance.seed)
    assistant.generation_config.num_assistant_tokens = assistance.length
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    generator, found = torch.Generator().manual_seed(assistance.seed), Assisted()
    known_1L = torch.tensor([[*prompt, *answer]])
    for repeat in range(assistance.repeats + 1):
        told_1L = spoilt(known_1L, assistance.shape.vocab_tokens, assistance.acceptance, generator)
        hook = assistant.register_forward_hook(_Teller(told_1L.to(model.device)), with_kwargs=True)
        [own], ends = _generate(model, [prompt], len(answer), assistant_model=assistant)
        hook.remove()
        if repeat:
            found.add(ends, assistance.length)
            found.num_answers += 1
            found.num_equal += own == list(answer)
    return found


class _Teller:
    """A forward hook that makes the given token of the next position the most likely one."""

    def __init__(self, told_1L: Tensor) -> None:
        self._told_1L = told_1L

    def __call__(self, model: Any, args: tuple[Any, ...], inputs: dict[str, Any], output: Any) -> None:
        next_position_1 = inputs["position_ids"][0, -1:] + 1  # stays on the device, to avoid a synchronisation
        last_1V = output.logits[:, -1]
        last_1V.scatter_(1, self._told_1L[:, next_position_1], torch.finfo(last_1V.dtype).max)


def _generate(
    model: Any, prompts: Sequence[Sequence[int]], num_tokens: int, **options: Any
) -> tuple[list[list[int]], RoundEnds]:
    ids_BL, ends = torch.tensor([list(prompt) for prompt in prompts], device=model.device), RoundEnds()
    output_BL = model.generate(
        input_ids=ids_BL,
        attention_mask=torch.ones_like(ids_BL),
        do_sample=False,
        max_new_tokens=num_tokens,
        streamer=ends,
        pad_token_id=0,
        **options,
    )
    return output_BL[:, ids_BL.shape[1] :].tolist(), ends
