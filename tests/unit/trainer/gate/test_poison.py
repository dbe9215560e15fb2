"""Outcomes that should not be learnt from: whatever comes in, what clean traffic gets is no worse."""

# ruff: noqa: N806

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from osd.records.outcome import Outcome
from tests.kit.trainer_bench import Bench
from tests.kit.trainer_fakes import HIDDEN_SIZE, VOCAB_TOKENS, feature_student, learnable_outcome, make_outcome
from trainer.examples.batches import make_batches
from trainer.examples.examples import make_examples
from trainer.gate.gate import measure
from trainer.gate.publisher import Publisher

_MOST_LOSS = 0.02
_NUM = 120


def _random_tokens() -> Iterator[Outcome]:
    rng = np.random.default_rng(1)
    for number in range(_NUM):
        prompt, output = rng.integers(VOCAB_TOKENS, size=3), rng.integers(VOCAB_TOKENS, size=8)
        yield make_outcome(f"random-{number}", prompt_ids=prompt.tolist(), output_ids=output.tolist())


def _one_query_repeated() -> Iterator[Outcome]:
    for number in range(_NUM):
        yield make_outcome(f"repeated-{number}", prompt_ids=(1, 2, 3), output_ids=(20, 20, 20, 20, 20, 20))


def _not_finite() -> Iterator[Outcome]:
    for number in range(_NUM):
        clean = learnable_outcome(number)
        if number % 2:
            hidden_NH = torch.full((9, HIDDEN_SIZE), torch.nan)
            spoilt = make_outcome(clean.request_id, output_ids=clean.output_ids, hidden_NH=hidden_NH)
        else:
            logprobs = np.full(len(clean.top_logprobs) // 2, np.nan, dtype="<f2").tobytes()
            spoilt = msgspec.structs.replace(clean, top_logprobs=logprobs)
        yield msgspec.structs.replace(spoilt, request_id=f"nan-{number}")


def _a_tenant_floods() -> Iterator[Outcome]:
    """Its tokens follow one another in the opposite direction."""
    for number in range(_NUM):
        ids = [(number - step) % 12 for step in range(10)]
        prompt = [*ids[:3], 12 + number // 12]  # so that none is a copy of another
        yield make_outcome(f"flood-{number}", prompt_ids=prompt, output_ids=ids[3:], domain="tenant")


def _length(bench: Bench) -> float:
    """Acceptance length of the version that serves, on clean traffic."""
    student = feature_student()
    latest = bench.store.latest()
    assert latest is not None
    student.load_state(bench.store.load(latest.number)[1])
    examples = [e for n in range(8) for e in make_examples(learnable_outcome(n), student.alignment, max_predicting=64)]
    return measure(student, make_batches(examples, 512)).length


def _taught(folder: Path) -> Bench:
    bench = Bench(folder, outcomes=64)
    bench.run(60)
    assert _length(bench) > 2.2
    return bench


@pytest.mark.parametrize("poison", [_random_tokens, _one_query_repeated, _not_finite, _a_tenant_floods])
def test_clean_traffic_loses_next_to_nothing(tmp_path: Path, poison: Callable[[], Iterator[Outcome]]) -> None:
    bench = _taught(tmp_path)
    before = _length(bench)
    for outcome in poison():
        bench.source.put(outcome)
    for _ in range(6):
        bench.run(10)  # a decision of the gate
        assert _length(bench) >= before - _MOST_LOSS
    assert bench.trainer.status().message == ""


@pytest.mark.parametrize("gated", [True, False])
def test_where_nothing_but_random_tokens_comes_the_gate_saves_the_drafter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gated: bool
) -> None:
    student = _taught(tmp_path / "before").student
    bench = Bench(tmp_path / "after", student=student, outcomes=0)
    before = _length(bench)
    for outcome in _random_tokens():
        bench.source.put(outcome)
    if not gated:
        monkeypatch.setattr(Publisher, "attempt", _publish_anyway(Publisher.attempt))
    bench.run(40)
    assert (_length(bench) >= before - _MOST_LOSS) == gated


def _publish_anyway(attempt: Callable[..., object]) -> Callable[..., object]:
    def publish(self: Publisher, *args: object, **kwargs: object) -> object:
        return attempt(self, *args, **{**kwargs, "demanded": True})

    return publish
