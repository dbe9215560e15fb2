"""The gate looks at a few held-out records first, at more of them only where these do not decide."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from osd.records.outcome import Outcome
from tests.kit.trainer_fakes import feature_student, make_outcome
from trainer.acceptance import ChainSums
from trainer.batches import Batch, make_batches
from trainer.examples import make_examples
from trainer.gate import Measurement, compare
from trainer.looks import split_into_looks

_POSITIONS = 30


def _outcome(number: int, domain: str = "default") -> Outcome:
    return make_outcome(f"{domain}-{number}", domain=domain)


def _numbers(look: Iterable[Outcome]) -> set[str]:
    return {outcome.request_id for outcome in look}


def test_the_newest_come_first_and_each_look_doubles_the_records() -> None:
    outcomes = [_outcome(number) for number in range(70)]
    looks = split_into_looks(outcomes, 8)
    assert [len(look) for look in looks] == [16, 16, 38]
    assert _numbers(looks[0]) == {f"default-{number}" for number in range(54, 70)}
    assert _numbers(chain.from_iterable(looks)) == _numbers(outcomes)
    assert [len(look) for look in split_into_looks(outcomes[:16], 8)] == [16]
    assert [len(look) for look in split_into_looks(outcomes[:20], 8)] == [16, 4]


def test_the_first_look_has_some_of_every_domain_and_the_newest_of_all() -> None:
    rare = [_outcome(number, domain) for domain in ("a", "b", "c") for number in range(5)]
    outcomes = [*rare, *(_outcome(number) for number in range(40))]
    first = split_into_looks(outcomes, 8)[0]
    assert {f"default-{number}" for number in range(32, 40)} <= _numbers(first)
    for domain in ("a", "b", "c"):
        assert {f"{domain}-{number}" for number in (2, 3, 4)} <= _numbers(first)


@cache
def _looks(num: int = 64) -> list[dict[str, list[Batch]]]:
    """Records named by numbers."""
    alignment = feature_student().alignment
    looks = split_into_looks([make_outcome(f"{number}") for number in range(num)], 8)
    return [
        {"": make_batches([e for o in look for e in make_examples(o, alignment, max_predicting=64)], 9999)}
        for look in looks
    ]


class Versions:
    """Two versions, whose acceptance of each record is drawn once; counts the records that are measured."""

    def __init__(self, gain: float, seed: int, num: int = 64) -> None:
        rng = np.random.default_rng(seed)
        skill_N = rng.uniform(0.2, 0.7, num)
        self._candidate = rng.binomial(_POSITIONS, np.clip(skill_N + gain, 0, 1))
        self._serving = rng.binomial(_POSITIONS, skill_N)
        self.num_measured = 0

    def published(self) -> bool:
        return compare(_looks(), self._measure_candidate, self._measure_serving, margin=0.0).published

    def _measure_candidate(self, batches: Sequence[Batch]) -> Measurement:
        self.num_measured += sum(len(batch.keys) for batch in batches)
        return self._of(self._candidate, batches)

    def _measure_serving(self, batches: Sequence[Batch]) -> Measurement:
        return self._of(self._serving, batches)

    def _of(self, accepted: NDArray[Any], batches: Sequence[Batch]) -> Measurement:
        numbers = [int(key.request_id) for batch in batches for key in batch.keys]
        accepted_N1 = torch.tensor(accepted[numbers], dtype=torch.float64)[:, None]
        return Measurement(ChainSums(accepted_N1, torch.full_like(accepted_N1, _POSITIONS)))


@pytest.mark.parametrize("gain", [0.3, -0.3])
def test_what_is_plain_from_few_records_is_measured_on_no_more(gain: float) -> None:
    versions = Versions(gain, seed=0)
    assert versions.published() == (gain > 0)
    assert versions.num_measured == 16


def test_what_is_not_plain_is_measured_on_all() -> None:
    versions = Versions(0.0, seed=1)
    assert not versions.published() and versions.num_measured == 64


def test_several_looks_publish_equal_versions_no_more_often_than_one() -> None:
    """One interval of forty lies above zero by chance; three unadjusted looks would publish twice as many."""
    assert sum(Versions(0.0, seed).published() for seed in range(400)) <= 0.025 * 400 + 8
