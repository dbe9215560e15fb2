"""The history: merged over engines, down-sampled by age, whole over outages, restarts and an emptied store."""

from __future__ import annotations

from itertools import pairwise

import pytest

from osd.monitor.answer import BadRangeError
from osd.monitor.buckets import MAX_POINTS, MAX_SERIES, TIERS, By, HistoryAnswer, HistoryQuery, Series
from osd.monitor.history import History
from osd.records.events import Event
from tests.kit.history_stores import MemoryHistory, SetClock

NOON_S = 1_800_000_000.0
ROUND = {"rounds": 1.0, "proposed": 4.0, "accepted": 2.0, "committed": 3.0}


def history(store: MemoryHistory | None, clock: SetClock, **options: int) -> History:
    return History(store, clock_s=clock, **options)


def read(one: History, from_s: float, to_s: float, *by: By, domain: str = "", step_s: int = 0) -> HistoryAnswer:
    return one.read(HistoryQuery(from_s=from_s, to_s=to_s, by=by, domain=domain, step_s=step_s))


def total(answer: HistoryAnswer, name: str) -> float:
    return sum(value or 0.0 for series in answer.series for value in series.figures.get(name, ()))


def test_series_merge_over_what_is_not_asked_for() -> None:
    clock = SetClock(NOON_S)
    one = history(MemoryHistory(), clock)
    for engine in ("a", "b"):
        for version in (1, 2):
            one.add(Series("code", "feature", version, engine), ROUND)
    answer = read(one, NOON_S - 60, NOON_S + 60)
    assert [series.of for series in answer.series] == [{}]
    assert total(answer, "rounds") == 4.0
    answer = read(one, NOON_S - 60, NOON_S + 60, "domain", "version")
    assert [(series.of, sum(filter(None, series.figures["accepted"]))) for series in answer.series] == [
        ({"domain": "code", "version": 1}, 4.0),
        ({"domain": "code", "version": 2}, 4.0),
    ]


def test_rounds_are_told_by_the_drafter_that_proposed() -> None:
    clock = SetClock(NOON_S)
    one = history(MemoryHistory(), clock)
    for series in (
        Series("code", "feature", 1),
        Series("code", "feature", 2),
        Series("code", "suffix"),
        Series("chat"),
    ):
        one.add(series, ROUND)
    one.add(Series(engine="a"), {"utilisation": 1.0})
    assert read(one, NOON_S - 60, NOON_S + 60, "domain").drafters == {"feature": 2.0, "suffix": 1.0, "": 1.0}
    assert read(one, NOON_S - 60, NOON_S + 60, domain="code").drafters == {"feature": 2.0, "suffix": 1.0}


def test_each_tier_holds_everything_and_old_ranges_are_read_coarsely() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    one = history(store, clock)
    for _ in range(5000):  # 25,000 s: seven hours
        one.add(Series("code", "feature", 1, "a"), ROUND)
        clock.now_s += 5
        if clock.now_s % 600 == 0:
            assert one.flush()
    one.flush()
    seconds, minutes, hours = (
        read(one, *span)
        for span in ((clock.now_s - 1800, clock.now_s), (NOON_S, clock.now_s), (NOON_S - 40 * 86_400, clock.now_s))
    )
    assert (seconds.step_s, minutes.step_s, hours.step_s) == (5, 60, 3600)
    assert total(seconds, "rounds") == 360
    assert total(minutes, "rounds") == total(hours, "rounds") == 5000


def test_a_restart_goes_on_in_the_same_buckets() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    for _ in range(3):
        one = history(store, clock)
        one.add(Series("code", "feature", 1, "a"), ROUND)
        assert one.flush()
        clock.now_s += 1
    yesterday = read(history(store, SetClock(NOON_S + 86_400)), NOON_S - 60, NOON_S + 3600)
    assert total(yesterday, "rounds") == 3
    assert len(store.buckets) == len(TIERS)


def test_an_outage_loses_nothing_and_is_marked() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    one = history(store, clock)
    one.add(Series("code"), ROUND)
    one.flush()
    store.is_away = True
    for _ in range(10):
        clock.now_s += 10
        one.add(Series("code"), ROUND)
        one.mark(Event(at_s=clock.now_s, kind="swap", message="drafter version 1 -> 2"))
        assert not one.flush()
    away = read(one, NOON_S, clock.now_s)
    assert "cannot be reached" in away.message
    assert total(away, "rounds") == 11
    store.is_away = False
    assert one.flush() and one.flush()
    back = read(one, NOON_S, clock.now_s)
    assert (back.message, total(back, "rounds")) == ("", 11)
    assert [mark["kind"] for mark in back.marks].count("swap") == 10
    (gap,) = [mark["data"] for mark in back.marks if mark["kind"] == "gap"]
    assert gap == {"from_s": NOON_S + 10, "to_s": clock.now_s}
    assert total(read(history(store, clock), NOON_S, clock.now_s), "rounds") == 11


def test_a_write_whose_answer_was_lost_counts_once() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    one = history(store, clock)
    store.loses_answers = True
    for _ in range(4):
        one.add(Series("code"), ROUND)
        assert not one.flush()
    store.loses_answers = False
    one.flush()
    assert total(read(one, NOON_S - 60, NOON_S + 60), "rounds") == 4


def test_a_long_outage_keeps_memory_bounded_and_the_old_part_coarse() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    one = history(store, clock)
    store.is_away = True
    for _ in range(2 * 720):
        one.add(Series("code"), ROUND)
        clock.now_s += 5
    store.is_away = False
    one.flush()
    stored = {tier.name: sum(name == tier.name for name, _ in store.buckets) for tier in TIERS}
    assert stored == {"seconds": 780, "minutes": 120, "hours": 2}
    assert (
        sum(bucket.rows[Series("code")]["rounds"] for (name, _), bucket in store.buckets.items() if name == "hours")
        == 1440
    )


def test_an_emptied_store_gets_what_is_remembered() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    one = history(store, clock)
    for _ in range(100):
        one.add(Series("code"), ROUND)
        clock.now_s += 30
        one.flush()
    store.empty()
    one.flush()
    one.flush()
    fresh = read(history(store, clock), NOON_S, clock.now_s)
    assert total(fresh, "rounds") == 100
    assert "was emptied" in fresh.marks[-1]["message"]


def test_a_clock_that_jumps_deletes_nothing() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    one = history(store, clock)
    for now_s in (NOON_S, NOON_S + 5e8, NOON_S - 7200, NOON_S + 10):
        clock.now_s = now_s
        one.add(Series("code"), ROUND)
        one.flush()
    assert total(read(one, NOON_S - 86_400, NOON_S + 86_400), "rounds") == 3


def test_clients_cannot_make_more_series_than_are_kept() -> None:
    clock, store = SetClock(NOON_S), MemoryHistory()
    one = history(store, clock, max_domains=3)
    for number in range(100):
        one.add(Series(f"domain-{number}"), ROUND)
    one.flush()
    answer = read(one, NOON_S - 60, NOON_S + 60, "domain")
    assert [(series.of["domain"], sum(filter(None, series.figures["rounds"]))) for series in answer.series] == [
        ("domain-0", 1.0), ("domain-1", 1.0), ("domain-2", 1.0), ("other", 97.0),
    ]  # fmt: skip
    again = history(store, clock, max_domains=3)
    again.add(Series("new"), ROUND)
    again.add(Series("domain-1"), ROUND)
    again.flush()
    assert read(again, NOON_S - 60, NOON_S + 60, "domain").domains == [
        "domain-0",
        "domain-1",
        "domain-2",
        "new",
        "other",
    ]
    again.add(Series("newer"), ROUND)
    assert "newer" not in read(again, NOON_S - 60, NOON_S + 60, "domain").domains


def test_an_answer_has_bounded_series_and_points() -> None:
    clock = SetClock(NOON_S)
    one = history(None, clock)
    for version in range(2 * MAX_SERIES):
        one.add(Series("code", "feature", version, "a"), {"rounds": float(version)})
    for span_s in (60, 3600, 86_400, 30 * 86_400, 400 * 86_400, 9 * 366 * 86_400):
        answer = read(one, NOON_S - span_s, NOON_S, "version")
        assert 0 < len(answer.times_s) <= MAX_POINTS + 1
        assert all(later - earlier == answer.step_s for earlier, later in pairwise(answer.times_s))
        assert len(answer.series) == MAX_SERIES
        assert total(answer, "rounds") == sum(range(2 * MAX_SERIES))
        assert "in memory only" in answer.message


@pytest.mark.parametrize(
    ("from_s", "to_s", "step_s", "said"),
    [
        (10.0, 10.0, 0, "before to"),
        (0.0, float("inf"), 0, "seconds since the epoch"),
        (-1e18, 1e18, 0, "ten years"),
        (0.0, 1e6, 1, "larger one"),
    ],
)
def test_absurd_ranges_are_refused(from_s: float, to_s: float, step_s: int, said: str) -> None:
    with pytest.raises(BadRangeError, match=said):
        read(history(None, SetClock(NOON_S)), from_s, to_s, step_s=step_s)


def test_a_range_without_data_and_an_unknown_domain_are_empty() -> None:
    one = history(MemoryHistory(), SetClock(NOON_S))
    one.add(Series("code"), ROUND)
    assert read(one, 0.0, 1000.0).series == []
    assert read(one, NOON_S - 60, NOON_S + 60, domain="nowhere").series == []
    assert read(one, NOON_S - 60, NOON_S + 60, domain="nowhere").domains == ["code"]
