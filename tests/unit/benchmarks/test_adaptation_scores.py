"""How replayed queries are scored, and how arms are compared."""

from __future__ import annotations

import random

import pytest

from benchmarks.adaptation.replay import as_decoded, replay, score
from benchmarks.adaptation.scores import Score, length_gain, queries_to_gain, total
from benchmarks.adaptation.streams import mixed, sharp, smooth
from osd.records.drafter_id import DrafterId
from osd.records.outcome import Outcome, Round
from tests.kit.trainer_fakes import make_outcome


class Scripted:
    """Proposes what it was told to, by how many tokens are known."""

    id = DrafterId("feature", 7)

    def __init__(self, by_known: dict[int, list[int]]) -> None:
        self._by_known = by_known
        self.asked: list[tuple[int, int]] = []

    def begin(self, outcome: Outcome) -> None:
        self.asked = []

    def propose(self, num_known: int, max_tokens: int) -> list[int]:
        self.asked.append((num_known, max_tokens))
        return self._by_known.get(num_known, [0] * max_tokens)[:max_tokens]


def test_rounds_are_those_of_an_engine() -> None:
    outcome = make_outcome(prompt_ids=[1, 2, 3], output_ids=[4, 5, 6, 7, 8, 9, 10])
    # 4 is the prefill's; from 4 known on: 5 6 right, 9 wrong -> 7 recovered; then 8 right ...
    proposer = Scripted({4: [5, 6, 9, 9], 7: [8, 9, 10, 11]})
    rounds = replay(proposer, outcome, length=4, max_tokens=96)
    assert rounds == [Round(7, 4, 2, "feature"), Round(7, 4, 3, "feature")]
    assert proposer.asked == [(4, 4), (7, 4)]
    decoded = as_decoded(outcome, rounds, "feature")
    assert (decoded.rounds, decoded.output_kinds) == (tuple(rounds), b"baaraaa"), (
        "the last round's own token is cut off"
    )
    found = score(rounds, 7)
    assert (found.rounds, found.committed, found.accepted) == (2, 6, 5)
    assert found.examined == 6, "9 was rejected; what came after the answer's end was not"
    assert (found.length, found.first) == (3.0, 1.0)
    assert found.alpha == pytest.approx(5 / 6)


def test_no_more_is_proposed_than_the_answer_may_have() -> None:
    outcome = make_outcome(prompt_ids=[1], output_ids=[4, 5, 6])
    proposer = Scripted({})
    assert [one.proposed for one in replay(proposer, outcome, length=4, max_tokens=3)] == [1, 0]
    assert proposer.asked == [(2, 1)]


def test_an_answer_that_ends_at_a_rejection_counts_it() -> None:
    outcome = make_outcome(prompt_ids=[1], output_ids=[4, 5])
    found = score(replay(Scripted({2: [9]}), outcome, length=1, max_tokens=96), 2)
    assert (found.rounds, found.accepted, found.examined, found.alpha) == (1, 0, 1, 0.0)


def test_ratios_are_of_sums() -> None:
    whole = total([Score(rounds=1, committed=4), Score(rounds=3, committed=4)])
    assert whole.length == 2.0


def runs_of(lengths: list[float], seed: int) -> list[Score]:
    """Queries of 40 tokens with these acceptance lengths, and a difficulty that both arms share."""
    rng = random.Random(seed)
    return [Score(rounds=40 / length * rng.uniform(0.5, 2.0), committed=40) for length in lengths]


def test_a_paired_gain_is_seen_where_queries_differ_widely() -> None:
    base, arm = runs_of([2.0] * 60, seed=1), runs_of([2.2] * 60, seed=1)
    gain = length_gain([arm], [base])
    assert 0.0 < gain.low < gain.mean < gain.high
    assert gain.mean == pytest.approx(total(arm).length - total(base).length)
    none = length_gain([base], [base])
    assert (none.low, none.mean, none.high) == (0.0, 0.0, 0.0)


def test_noise_is_no_gain() -> None:
    gain = length_gain([runs_of([2.0] * 60, seed=2)], [runs_of([2.0] * 60, seed=3)])
    assert gain.low < 0.0 < gain.high


def test_queries_to_a_share_of_the_gain() -> None:
    base = [Score(rounds=20, committed=40)] * 40
    arm = [Score(rounds=20, committed=40)] * 20 + [Score(rounds=10, committed=40)] * 20
    # Over 10 queries: with x fast ones the length is 400 / (200 - 10 x), which passes 2 + 0.8 * 2 at x = 9.
    assert queries_to_gain(arm, base, share=0.8, window=10) == 29
    assert queries_to_gain(base, base, share=0.8, window=10) is None


def test_orders_of_a_stream() -> None:
    fading, rising = [f"a{n}" for n in range(200)], [f"b{n}" for n in range(200)]
    assert sharp([fading, rising, fading[:2]]) == [*fading, *rising, "a0", "a1"]
    drawn = smooth(fading, rising, seed=0)
    early, late = drawn[:100], drawn[-100:]
    assert sum(one.startswith("b") for one in early) < 40 < 60 < sum(one.startswith("b") for one in late)
    assert [one for one in drawn if one.startswith("a")] == fading[: sum(one.startswith("a") for one in drawn)]
    assert smooth(fading, rising, seed=0) == drawn != smooth(fading, rising, seed=1)
    assert sorted(mixed([fading, rising], seed=0)) == sorted(fading + rising)
