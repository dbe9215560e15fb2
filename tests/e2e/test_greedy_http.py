"""Greedy answers over HTTP are transformers' own, token for token, whatever the drafter does meanwhile.

The real target, or its first layers, in float32 on real prompts. The drafters are untrained, so most of what they
propose is rejected; other random versions are swapped in all the time; queries of different lengths come and go four at
a time.

Two float32 passes of different shapes may differ in the last bits. Where an answer differs from generate()'s, it is
excused only if the target's two best logits at the first differing token are closer than `_TIE`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from os.path import commonprefix
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI

from benchmarks.prompts import code_prompts, small_talk_prompts, tool_call_prompts
from benchmarks.server import osd_server
from osd.assembly.drafter import ensure_first_version, open_store
from osd.config.paths import models_dir
from osd.config.settings import default_state_dir, load_config
from osd.drafters.create import create_initial
from osd.io.weight_store import FileWeightStore
from osd.loading.causal_lm import load_causal_lm
from osd.loading.resolve import ResolvedTarget, resolve_target
from osd.text.codec import TextCodec
from osd.text.prompt_file import Messages
from tests.kit.saved_models import save_first_layers
from tests.kit.stores import weights_dir

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(420)]
_TIE = 1e-3
_SWAP_EVERY_S = 1.0
_FIRST_LAYERS = 6
_LENGTHS = (24, 9, 16)


_TARGETS = ["first layers", pytest.param("whole", marks=[pytest.mark.slow, pytest.mark.long])]


@pytest.fixture(scope="module", params=_TARGETS)
def resolved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ResolvedTarget:
    """The default target, converted once on this machine."""
    whole = resolve_target("smollm2", default_state_dir())
    if request.param == "whole":
        return whole
    folder = tmp_path_factory.mktemp("models") / "first"
    return ResolvedTarget("first", save_first_layers(whole.folder, folder, _FIRST_LAYERS))


@pytest.fixture(scope="module")
def url(resolved: ResolvedTarget, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    state_dir = tmp_path_factory.mktemp("greedy")
    models_dir(state_dir).symlink_to(models_dir(default_state_dir()))
    target = "smollm2" if resolved.target_id == "smollm2" else str(resolved.folder)
    untrained = load_config(
        None, {"state_dir": state_dir, "target": {"model": target}, "drafter": {"pretrained": False}}
    )
    ensure_first_version(untrained, resolved, open_store(untrained, resolved))
    # One thread: where other processes want the machine too, two would mostly wait for each other.
    flags = ["--target", target, "--dtype", "float32", "--max-slots", "4", "--no-train", "--threads", "1"]
    often = ["--swap.poll_interval_s", "0.1", "--cluster.report_interval_s", "0.1"]
    with osd_server(state_dir, state_dir / "log", flags + often) as url, _swapping(state_dir, resolved):
        yield url


@contextmanager
def _swapping(state_dir: Path, resolved: ResolvedTarget) -> Iterator[None]:
    """Publish another random drafter again and again."""
    store = FileWeightStore(weights_dir(state_dir, resolved.target_id, "feature"))
    config, stop = load_config(None, {"state_dir": state_dir}), threading.Event()

    def publish() -> None:
        seed = 0
        while not stop.wait(_SWAP_EVERY_S):
            seed += 1
            drafter = config.drafter.model_copy(update={"seed": seed})
            shapes, state = create_initial(config.model_copy(update={"drafter": drafter}), resolved.folder)
            store.publish(state, kind="feature", config=shapes, parent=None, note="random")

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)


def _prompts(count: int) -> list[Messages]:
    """As many of each kind, in turn."""
    kinds = (tool_call_prompts(seed=1), code_prompts(), small_talk_prompts())
    return list(chain.from_iterable(zip(*(kind[: -(-count // 3)] for kind in kinds), strict=True)))[:count]


def _ask(
    url: str, model: str, prompt_ids: tuple[int, ...], max_tokens: int, length: int | None
) -> tuple[list[str], str, list[int]]:
    """(token texts, text, drafter versions that proposed)."""
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        answer: Any = client.completions.create(
            model=model,
            prompt=list(prompt_ids),
            max_tokens=max_tokens,
            temperature=0,
            logprobs=0,
            extra_body={"osd": {"speculation_length": length}},
        )
    choice = answer.choices[0]
    return (
        [token.removeprefix("bytes:") for token in choice.logprobs.tokens],
        choice.text,
        answer.osd["drafter_versions"],
    )


def _check(url: str, resolved: ResolvedTarget, prompts: list[Messages]) -> None:
    codec = TextCodec.open(resolved.folder, resolved.target_id, 2048)
    asked = [(codec.encode_chat(p), _LENGTHS[n % 3], (3, None, 2, 0)[n % 4]) for n, p in enumerate(prompts)]
    answers: list[tuple[list[str], str, list[int]]] = []
    with ThreadPoolExecutor(4) as pool:
        while not any(len(versions) > 1 for _, _, versions in answers):
            assert len(answers) < 5 * len(asked), "no drafter was swapped in the middle of an answer"
            answers = [*answers, *pool.map(lambda one: _ask(url, resolved.target_id, *one), asked)]
    model = load_causal_lm(resolved.folder, dtype=torch.float32, device=torch.device("cpu"))
    eos_ids = codec.end_ids
    excused, own = 0, [_generate(model, prompt_ids, max_tokens) for prompt_ids, max_tokens, _ in asked]
    for number, (tokens, text, _) in enumerate(answers):
        (prompt_ids, *_), expected = asked[number % len(asked)], own[number % len(asked)]
        if tokens == [codec.token_text(token) for token in expected]:
            whole = codec.decode(expected[:-1] if expected[-1] in eos_ids else expected)
            assert text == whole.rstrip("\N{REPLACEMENT CHARACTER}")  # where it was cut in a character, it ends before
            continue
        known = len(commonprefix([tokens, [codec.token_text(token) for token in expected]]))
        assert known < len(expected) and known < len(tokens), f"{text!r} ends elsewhere than {codec.decode(expected)!r}"
        with torch.no_grad():
            logits_V = model(torch.tensor([[*prompt_ids, *expected[:known]]])).logits[0, -1]
        best, second = logits_V.topk(2).values.tolist()
        assert best - second < _TIE, f"{text!r} is not {codec.decode(expected)!r}"
        excused += 1
    assert excused <= len(answers) // 12


def _generate(model: Any, prompt_ids: tuple[int, ...], max_tokens: int) -> list[int]:
    ids = torch.tensor([prompt_ids])
    with torch.no_grad():
        output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens)
    answer: list[int] = output[0, len(prompt_ids) :].tolist()
    return answer


def test_a_conversation_is_not_read_again(url: str, resolved: ResolvedTarget) -> None:
    """And its answers are those of a server that has never seen it: what comes first is asked last once more."""
    first: Any = {"role": "user", "content": "Name three rivers of Europe, one a line, and say nothing else."}
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:

        def ask(messages: list[Any]) -> Any:
            name = resolved.target_id
            return client.chat.completions.create(model=name, messages=messages, max_tokens=16, temperature=0)

        one = ask([first])
        answer = {"role": "assistant", "content": one.choices[0].message.content}
        two = ask([first, answer, {"role": "user", "content": "And two of Asia."}])
        again = ask([first])
    assert two.usage.prompt_tokens_details.cached_tokens >= one.usage.prompt_tokens
    assert again.usage.prompt_tokens_details.cached_tokens == one.usage.prompt_tokens - 1
    assert again.choices[0].message.content == one.choices[0].message.content


@pytest.mark.timeout(900)
def test_real_prompts(url: str, resolved: ResolvedTarget) -> None:
    _check(url, resolved, _prompts(50 if resolved.target_id == "smollm2" else 12))
