"""A swapped-in version that is accepted significantly less is found out, and a sound one is not accused."""

from __future__ import annotations

import random

import pytest

from osd.config import SwapConfig
from osd.swap_watch import SwapWatch, Verdict

_CONFIG = SwapConfig(min_rounds=20, watch_rounds=200, roll_back_z=4.0)


def _watch(before: float, rounds: int = 200, seed: int = 0) -> tuple[SwapWatch, random.Random]:
    chance, watch = random.Random(seed), SwapWatch(_CONFIG)
    for _ in range(rounds):
        watch.observe(chance.random() < before)
    return watch, chance


def _judge(watch: SwapWatch, chance: random.Random, after: float, rounds: int = 400) -> tuple[Verdict, int]:
    """The first decided verdict, and after how many rounds."""
    for number in range(1, rounds + 1):
        watch.observe(chance.random() < after)
        if (verdict := watch.verdict()) != "undecided":
            return verdict, number
    return "undecided", rounds


@pytest.mark.parametrize(("before", "after"), [(0.8, 0.0), (0.5, 0.1), (0.3, 0.0), (1.0, 0.5), (0.15, 0.0)])
def test_a_fall_is_found(before: float, after: float) -> None:
    watch, chance = _watch(before)
    watch.swapped(watch=True)
    verdict, rounds = _judge(watch, chance, after)
    assert verdict == "worse"
    assert 20 <= rounds <= 200
    assert watch.rates()[0] == pytest.approx(before, abs=0.1)
    assert watch.rates()[1] == pytest.approx(after, abs=0.15)
    watch.observe(False)
    assert watch.verdict() == "sound"  # said once; the roll back is on its way


@pytest.mark.parametrize("before", [0.02, 0.3, 0.6, 0.97, 1.0, 0.0])
def test_as_good_a_version_is_never_accused(before: float) -> None:
    """At four standard errors a look-in after every round hardly ever errs: none in a hundred swaps here."""
    for seed in range(100):
        watch, chance = _watch(before, seed=seed)
        watch.swapped(watch=True)
        assert _judge(watch, chance, before) == ("sound", 200)


def test_a_better_version_is_sound() -> None:
    watch, chance = _watch(0.3)
    watch.swapped(watch=True)
    assert _judge(watch, chance, 0.9) == ("sound", 200)
    assert watch.fall_z() < 0


def test_rounds_are_wanted_until_there_are_enough_to_judge() -> None:
    watch, chance = _watch(0.5)
    wants = [watch.wants_rounds]
    watch.swapped(watch=True)
    for _ in range(20):
        wants.append(watch.wants_rounds)
        assert watch.verdict() == "undecided"
        watch.observe(chance.random() < 0.5)
    wants.append(watch.wants_rounds)
    assert wants == [False] + [True] * 20 + [False]


def test_without_a_predecessor_nothing_is_compared() -> None:
    watch, chance = _watch(1.0, rounds=19)
    watch.swapped(watch=True)
    assert not watch.wants_rounds
    assert _judge(watch, chance, 0.0) == ("sound", 1)


def test_a_roll_back_is_not_judged() -> None:
    watch, chance = _watch(0.9)
    watch.swapped(watch=False)
    assert _judge(watch, chance, 0.0) == ("sound", 1)


def test_quick_swaps_are_judged_against_the_last_version_that_was_known_well() -> None:
    watch, chance = _watch(0.8)
    watch.swapped(watch=True)
    for _ in range(5):
        watch.observe(False)
    watch.swapped(watch=True)
    assert _judge(watch, chance, 0.0)[0] == "worse"


def test_what_is_published_right_after_a_roll_back_is_judged_too() -> None:
    """Against the good version's own figures, not those of the bad one in between."""
    watch, chance = _watch(0.8)
    watch.swapped(watch=True)
    assert _judge(watch, chance, 0.0)[0] == "worse"
    watch.swapped(watch=False)
    for _ in range(3):
        watch.observe(True)
    watch.swapped(watch=True)
    assert _judge(watch, chance, 0.2)[0] == "worse"
