"""A swapped-in version that is accepted significantly less is found out, and a sound one is not accused."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count, islice

import pytest

from osd.config.settings import SwapConfig
from osd.records.acceptance_figures import Verdict
from osd.speculation.watch import SwapWatch

_CONFIG = SwapConfig()
_ROUNDS_A_QUERY = 25
Rounds = Iterator[tuple[str, bool]]


def _rounds(rate: float, *, correlation: float = 0.0, seed: int = 0) -> Rounds:
    """Query after query; how often a query's first tokens are accepted is drawn around `rate` (a beta-binomial)."""
    chance = random.Random(seed)
    for query in count():
        of_query = rate
        if correlation and 0 < rate < 1:
            spread = (1 - correlation) / correlation
            of_query = chance.betavariate(rate * spread, (1 - rate) * spread)
        for _ in range(_ROUNDS_A_QUERY):
            yield f"seed {seed}, query {query}", chance.random() < of_query


def _watch(before: Rounds, num_rounds: int = 600) -> SwapWatch:
    watch = SwapWatch(_CONFIG)
    for query, accepted in islice(before, num_rounds):
        watch.observe(query, accepted)
    watch.swapped(watch=True)
    return watch


def _judge(watch: SwapWatch, after: Rounds, num_rounds: int = 600) -> tuple[Verdict, int]:
    """The first decided verdict, and after how many rounds."""
    for number, (query, accepted) in enumerate(islice(after, num_rounds), start=1):
        watch.observe(query, accepted)
        if (verdict := watch.verdict()) != "undecided":
            return verdict, number
    return "undecided", num_rounds


@pytest.mark.parametrize(("before", "after"), [(0.8, 0.0), (0.5, 0.1), (0.3, 0.0), (1.0, 0.5), (0.2, 0.0)])
def test_a_fall_is_found(before: float, after: float) -> None:
    watch = _watch(_rounds(before))
    verdict, num_rounds = _judge(watch, _rounds(after, seed=1))
    assert verdict == "worse"
    assert 50 < num_rounds <= 150
    assert watch.rates()[0] == pytest.approx(before, abs=0.1)
    assert watch.rates()[1] == pytest.approx(after, abs=0.15)
    watch.observe("another", False)
    assert watch.verdict() == "worse"  # until another version serves, as after the roll-back
    watch.swapped(watch=False)
    assert watch.verdict() == "sound"


def test_a_fall_is_found_where_queries_differ() -> None:
    for seed in range(20):
        watch = _watch(_rounds(0.6, correlation=0.2, seed=seed))
        verdict, num_rounds = _judge(watch, _rounds(0.02, correlation=0.2, seed=100 + seed))
        assert verdict == "worse"
        assert num_rounds <= 200


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.6, 0.97, 1.0, 0.0])
def test_as_good_a_version_is_never_accused(rate: float) -> None:
    """At these standard errors a look after every round hardly ever errs: none in a hundred swaps here."""
    for seed in range(100):
        verdict, _ = _judge(_watch(_rounds(rate, seed=seed)), _rounds(rate, seed=1000 + seed))
        assert verdict == "sound"


@pytest.mark.parametrize("correlation", [0.1, 0.3])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6, 0.9])
def test_nor_where_queries_differ(rate: float, correlation: float) -> None:
    """Independent rounds would let the first hard query accuse a sound version: up to every third swap."""
    accused = 0
    for seed in range(100):
        before = _rounds(rate, correlation=correlation, seed=seed)
        after = _rounds(rate, correlation=correlation, seed=1000 + seed)
        accused += _judge(_watch(before), after)[0] == "worse"
    assert accused <= 3


def test_one_hard_query_accuses_nobody() -> None:
    watch = _watch(_rounds(0.8))
    for _ in range(300):
        watch.observe("the hard one", False)
        assert watch.verdict() == "undecided"
    assert _judge(watch, _rounds(0.8, seed=1))[0] == "sound"


def test_a_better_version_is_sound() -> None:
    watch = _watch(_rounds(0.3))
    assert _judge(watch, _rounds(0.9, seed=1))[0] == "sound"
    assert watch.fall_z() < 0


def test_rounds_are_wanted_of_queries_that_can_help_until_the_version_is_judged() -> None:
    watch = SwapWatch(_CONFIG)
    for query, accepted in islice(_rounds(0.5), 600):
        watch.observe(query, accepted)
    assert not watch.wants_rounds(["any"])
    watch.swapped(watch=True)
    assert not watch.wants_rounds([])
    for _ in range(20):
        assert watch.wants_rounds(["one"])
        watch.observe("one", True)
    assert not watch.wants_rounds(["one"])
    assert watch.wants_rounds(["one", "two"])
    assert _judge(watch, _rounds(0.5, seed=1))[0] == "sound"
    assert not watch.wants_rounds(["three"])


def test_the_newest_rounds_count() -> None:
    """Also of a query that has long been counted as often as a query may be."""
    watch = SwapWatch(SwapConfig(watch_rounds=40))
    for query in ("a", "b", "c"):
        for _ in range(20):
            watch.observe(query, False)
    for _ in range(20):
        watch.observe("a", True)
    assert watch.rates()[1] == 0.5


@pytest.mark.parametrize(("num_rounds", "is_known"), [(19, False), (50, False), (51, True)])
def test_without_a_known_predecessor_nothing_is_compared(num_rounds: int, is_known: bool) -> None:
    """Known from three queries on, of 25 rounds here."""
    watch = _watch(_rounds(1.0), num_rounds)
    assert watch.wants_rounds(["any"]) == is_known
    assert _judge(watch, _rounds(0.0, seed=1))[0] == ("worse" if is_known else "sound")


def test_a_roll_back_is_not_judged() -> None:
    watch = _watch(_rounds(0.9))
    watch.swapped(watch=False)
    assert _judge(watch, _rounds(0.0, seed=1)) == ("sound", 1)


def test_quick_swaps_are_judged_against_the_last_version_that_was_known_well() -> None:
    watch = _watch(_rounds(0.8))
    for query in range(5):
        watch.observe(str(query), False)
    watch.swapped(watch=True)
    assert _judge(watch, _rounds(0.0, seed=1))[0] == "worse"


def test_what_is_published_right_after_a_roll_back_is_judged_too() -> None:
    """Against the good version's own figures, not those of the bad one in between."""
    watch = _watch(_rounds(0.8))
    assert _judge(watch, _rounds(0.0, seed=1))[0] == "worse"
    watch.swapped(watch=False)
    for query in range(3):
        watch.observe(str(query), True)
    watch.swapped(watch=True)
    assert _judge(watch, _rounds(0.2, seed=2))[0] == "worse"
