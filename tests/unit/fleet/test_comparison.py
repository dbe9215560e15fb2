"""A swapped-in version that is accepted significantly less is found out, and a sound one is not accused."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice

import pytest

from osd.config.versions import SwapConfig
from osd.fleet.comparison import Verdict, compare, fall_z
from osd.fleet.first_token_window import FirstTokenWindow

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


def _window(rounds: Iterable[tuple[str, bool]] = (), num_rounds: int = 600) -> FirstTokenWindow:
    window = FirstTokenWindow(_CONFIG.watch_rounds)
    for query, accepted in islice(rounds, num_rounds):
        if window.takes(query):
            window.add(query, accepted)
    return window


def _judge(before: FirstTokenWindow, rounds: Rounds, num_rounds: int = 600) -> tuple[Verdict, int]:
    """The first decided verdict on the version with these rounds, and after how many of them."""
    after = _window()
    for number, (query, accepted) in enumerate(islice(rounds, num_rounds), start=1):
        if after.takes(query):
            after.add(query, accepted)
        if (verdict := compare(before, after, _CONFIG)) != "undecided":
            return verdict, number
    return "undecided", num_rounds


@pytest.mark.parametrize(("before", "after"), [(0.8, 0.0), (0.5, 0.1), (0.3, 0.0), (1.0, 0.5), (0.2, 0.0)])
def test_a_fall_is_found(before: float, after: float) -> None:
    verdict, num_rounds = _judge(_window(_rounds(before)), _rounds(after, seed=1))
    assert verdict == "worse"
    assert 50 < num_rounds <= 150


def test_a_fall_is_found_where_queries_differ() -> None:
    for seed in range(20):
        before = _window(_rounds(0.6, correlation=0.2, seed=seed))
        verdict, num_rounds = _judge(before, _rounds(0.02, correlation=0.2, seed=100 + seed))
        assert verdict == "worse"
        assert num_rounds <= 200


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.6, 0.97, 1.0, 0.0])
def test_as_good_a_version_is_never_accused(rate: float) -> None:
    """At these standard errors a look after every round hardly ever errs: none in a hundred swaps here."""
    for seed in range(100):
        verdict, _ = _judge(_window(_rounds(rate, seed=seed)), _rounds(rate, seed=1000 + seed))
        assert verdict == "sound"


@pytest.mark.parametrize("correlation", [0.1, 0.3])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6, 0.9])
def test_nor_where_queries_differ(rate: float, correlation: float) -> None:
    """Independent rounds would let the first hard query accuse a sound version: up to every third swap."""
    accused = 0
    for seed in range(100):
        before = _rounds(rate, correlation=correlation, seed=seed)
        after = _rounds(rate, correlation=correlation, seed=1000 + seed)
        accused += _judge(_window(before), after)[0] == "worse"
    assert accused <= 3


def test_one_hard_query_accuses_nobody() -> None:
    hard = ("the hard one", False)
    assert _judge(_window(_rounds(0.8)), iter([hard] * 300))[0] == "undecided"
    assert _judge(_window(_rounds(0.8)), chain([hard] * 300, _rounds(0.8, seed=1)), 900)[0] == "sound"


def test_a_better_version_is_sound() -> None:
    before, after = _window(_rounds(0.3)), _window(_rounds(0.9, seed=1))
    assert compare(before, after, _CONFIG) == "sound"
    assert fall_z(before, after) < 0


@pytest.mark.parametrize(("num_rounds", "is_known"), [(19, False), (50, False), (51, True)])
def test_with_little_known_of_either_nothing_is_decided(num_rounds: int, is_known: bool) -> None:
    """Known from three queries on, of 25 rounds here."""
    few, many = _window(_rounds(1.0), num_rounds), _window(_rounds(0.0, seed=1))
    assert compare(few, many, _CONFIG) == ("worse" if is_known else "undecided")
    few, many = _window(_rounds(0.0), num_rounds), _window(_rounds(1.0, seed=1))
    assert compare(many, few, _CONFIG) == ("worse" if is_known else "undecided")


def test_the_newest_queries_count() -> None:
    window = FirstTokenWindow(40)
    for query in ("a", "b", "c"):
        for _ in range(20):
            window.add(query, False)
    assert len(window) == 40 and window.num_queries == 2
    for _ in range(20):
        window.add("d", True)
    assert window.rate == 0.5
    assert window.counts() == {"c": (20, 0), "d": (20, 20)}


def test_what_is_put_again_changes_nothing() -> None:
    """Evidence comes as counts of queries, and a report may come twice."""
    window, same = FirstTokenWindow(40), FirstTokenWindow(40)
    for _ in range(2):
        window.put("a", 5, 2)
        window.put("b", 20, 1)
    for query, accepted in [("a", 2), ("b", 1)]:
        for number in range(5 if query == "a" else 20):
            same.add(query, number < accepted)
    assert window.counts() == same.counts() and len(window) == 25
    assert window.estimate(0.1) == same.estimate(0.1) and window.correlation() == same.correlation()
