"""A change of acceptance is found within few queries, and where nothing changes nothing is found.

Queries are simulated with the means of GSM8K and Spider (first-token acceptance 0.53 and 0.37 of the shipped drafter),
rounds per query as recorded, and queries that differ by a standard deviation of 0.07 besides the rounds' own chance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

import trainer.drift.shift
from trainer.drift.shift import Direction, ShiftDetector

_GSM8K, _SPIDER, _MBPP = 0.53, 0.37, 0.70
_WITHIN_QUERIES = 60
_STATIONARY = 5000


def _queries(seed: int, mean: float, num: int, between: float = 0.07) -> Iterator[tuple[int, int]]:
    """(accepted, rounds) by query."""
    rng = np.random.default_rng(seed)
    for _ in range(num):
        rounds = int(rng.integers(6, 45))
        yield int(rng.binomial(rounds, np.clip(rng.normal(mean, between), 0.0, 1.0))), rounds


def _num_alarms(seed: int, mean: float, num: int, direction: Direction = "down", between: float = 0.07) -> int:
    detector, alarms = ShiftDetector(direction), 0
    for query in _queries(seed, mean, num, between):
        if detector.add(*query).alarms:
            alarms += 1
            detector.reset()
    return alarms


def _delay(seed: int, before: float, after: float, num_before: int, direction: Direction = "down") -> int:
    """Queries after the change until it is found; one more than are asked where it is not."""
    detector = ShiftDetector(direction)
    assert not any(detector.add(*query).alarms for query in _queries(seed, before, num_before))
    for number, query in enumerate(_queries(seed + 1000, after, 2 * _WITHIN_QUERIES), start=1):
        if detector.add(*query).alarms:
            return number
    return 2 * _WITHIN_QUERIES + 1


@pytest.mark.parametrize("mean", [_GSM8K, _SPIDER, 0.05, 0.95])
def test_stationary_traffic_alarms_at_most_once_in_5000_queries(mean: float) -> None:
    """Over 10 seeds, so 50,000 queries: ten alarms would be the bound's rate, and there are two at most."""
    assert sum(_num_alarms(seed, mean, _STATIONARY) for seed in range(10)) <= 2


def test_queries_that_differ_much_are_no_drift() -> None:
    """Rounds of a query then are strongly correlated; deviations are compared with how far queries scatter."""
    assert sum(_num_alarms(seed, 0.5, _STATIONARY, between=0.25) for seed in range(4)) <= 1


@pytest.mark.parametrize("num_before", [60, 150, 1000])
def test_a_sharp_fall_is_found_within_60_queries(num_before: int) -> None:
    delays = [_delay(seed, _GSM8K, _SPIDER, num_before) for seed in range(40)]
    assert max(delays) <= _WITHIN_QUERIES and np.median(delays) <= 20


def test_a_sharp_rise_is_found_by_the_detector_of_rises_alone() -> None:
    assert max(_delay(seed, _SPIDER, _MBPP, 200, "up") for seed in range(20)) <= _WITHIN_QUERIES
    detector = ShiftDetector("down")
    for query in (*_queries(0, _SPIDER, 200), *_queries(1, _MBPP, 60)):
        assert not detector.add(*query).alarms


def test_a_slow_fall_is_found() -> None:
    """From 0.53 to 0.33 over 1,000 queries, so that no sixty of them differ by more than 0.012."""
    found = 0
    for seed in range(10):
        detector = ShiftDetector("down")
        for number in range(1200):
            mean = _GSM8K - 0.2 * min(max(number - 200, 0), 1000) / 1000
            [query] = _queries(7919 * seed + number, mean, 1)
            if detector.add(*query).alarms:
                found += number > 200
                break
    assert found == 10


def _alarms_after(detector: ShiftDetector, seed: int, mean: float, num: int) -> list[int]:
    """The numbers of the queries that alarm, of so many with this mean."""
    return [number for number, query in enumerate(_queries(seed, mean, num), start=1) if detector.add(*query).alarms]


def test_a_small_lasting_fall_is_found_and_such_a_rise_is_none() -> None:
    """By 0.07, of which Page-Hinkley allows for the most part; five of these eight it finds by chance."""
    num_found = 0
    for seed in range(8):
        falls, rises = ShiftDetector("down"), ShiftDetector("down")
        assert not _alarms_after(falls, seed, _GSM8K, 500)
        num_found += bool(_alarms_after(falls, seed + 1000, _GSM8K - 0.07, 1500))
        assert not _alarms_after(rises, seed, _GSM8K, 500)
        assert not _alarms_after(rises, seed + 1000, _GSM8K + 0.07, 1500)
    assert num_found == 7


def test_after_a_rise_the_higher_level_is_normal() -> None:
    """So a fall to what was good before is found at once; compared with all earlier queries it takes 42."""
    for seed in range(4):
        detector = ShiftDetector("down")
        assert not _alarms_after(detector, seed, _SPIDER, 300)
        assert not _alarms_after(detector, seed + 1, _MBPP, 200)
        first, *_ = _alarms_after(detector, seed + 2, _GSM8K, 60)
        assert first <= 20


def test_three_queries_decide_nothing_however_long_they_are() -> None:
    detector = ShiftDetector("down")
    assert not _alarms_after(detector, 0, _GSM8K, 200)
    assert not any(detector.add(0, 1000).alarms for _ in range(3))


def test_a_query_of_many_rounds_counts_like_a_few_independent_ones() -> None:
    """One of 41 like 41 / (1 + 40 * 0.1) = 8.2 of one round."""
    detector = ShiftDetector("down")
    for number in range(400):
        detector.add(*((41, 41) if number % 2 else (0, 1)))
    assert detector.reference == pytest.approx(8.2 / (8.2 + 1), abs=0.01)


def test_it_warns_before_it_alarms() -> None:
    detector = ShiftDetector("down")
    steps = [detector.add(*query) for query in (*_queries(0, _GSM8K, 200), *_queries(4, _SPIDER, 60))]
    first_warning = next(number for number, step in enumerate(steps) if step.warns)
    first_alarm = next(number for number, step in enumerate(steps) if step.alarms)
    assert 200 <= first_warning < first_alarm
    assert detector.reference == pytest.approx(_GSM8K, abs=0.02)


def test_after_a_reset_the_new_level_is_normal() -> None:
    detector = ShiftDetector("down")
    for query in _queries(5, _GSM8K, 200):
        detector.add(*query)
    detector.reset()
    assert detector.reference == 0.0
    assert not any(detector.add(*query).alarms for query in _queries(6, _SPIDER, 500))


def test_without_the_lag_a_change_hides_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queries after a change would at once belong to what they are compared with."""
    with_lag = [_delay(seed, _GSM8K, 0.45, 60) for seed in range(20)]
    monkeypatch.setattr(trainer.drift.shift, "_LAG_QUERIES", 0)
    without = [_delay(seed, _GSM8K, 0.45, 60) for seed in range(20)]
    assert np.mean(with_lag) < 0.9 * np.mean(without)


@pytest.mark.parametrize("num_before", [20, 50, 300])
def test_a_restored_detector_goes_on_as_if_nothing_had_happened(num_before: int) -> None:
    """Through JSON, as in a checkpoint; and a new one in its place would notice later, or never."""
    whole, restored = ShiftDetector("down"), ShiftDetector("down")
    for query in _queries(3, _GSM8K, num_before):
        whole.add(*query)
    restored.restore(json.loads(json.dumps(whole.state())))
    for query in _queries(4, _SPIDER, 80):
        assert whole.add(*query) == restored.add(*query)
        assert whole.state() == restored.state()


def test_a_change_during_a_restart_is_found_soon_also_after_long_traffic() -> None:
    """Of two thousand queries, the newest few hundred are enough."""
    detector, restored = ShiftDetector("down"), ShiftDetector("down")
    for query in _queries(3, _GSM8K, 2000):
        detector.add(*query)
    state = detector.state()
    assert len(json.dumps(state)) < 10_000
    restored.restore(state)
    assert restored.reference == detector.reference
    found = [restored.add(*query).alarms for query in _queries(5, _SPIDER, _WITHIN_QUERIES)]
    assert any(found)
    anew = ShiftDetector("down")
    assert not any(anew.add(*query).alarms for query in _queries(5, _SPIDER, _WITHIN_QUERIES))


def test_a_restored_detector_does_not_alarm_by_itself() -> None:
    for seed in range(10):
        detector, restored = ShiftDetector("down"), ShiftDetector("down")
        for query in _queries(seed, _GSM8K, 1000):
            detector.add(*query)
        restored.restore(detector.state())
        assert not any(restored.add(*query).alarms for query in _queries(seed + 100, _GSM8K, 300))
