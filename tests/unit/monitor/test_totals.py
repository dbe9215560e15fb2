"""Totals of engines: differences, whatever is lost, repeated or restarted."""

from __future__ import annotations

from osd.meters.served_totals import ServedTotals
from osd.monitor.buckets import Series
from osd.monitor.totals import Totals
from tests.kit.clock import Clock

CODE = Series("code", "feature", 1)


def test_a_lost_and_a_repeated_report_count_once() -> None:
    totals = Totals()
    assert totals.added("a", "p1", [(CODE, {"rounds": 5.0})], number=0) == [(CODE, {"rounds": 5.0})]
    assert totals.added("a", "p1", [(CODE, {"rounds": 5.0})], number=0) == []
    assert totals.added("a", "p1", [(CODE, {"rounds": 12.0, "accepted": 1.0})], number=2) == [
        (CODE, {"rounds": 7.0, "accepted": 1.0})
    ]


def test_a_report_that_arrives_after_the_next_one_counts_for_nothing() -> None:
    totals = Totals()
    totals.added("a", "p1", [(CODE, {"rounds": 5.0})], number=0)
    totals.added("a", "p1", [(CODE, {"rounds": 12.0})], number=2)
    assert totals.added("a", "p1", [(CODE, {"rounds": 8.0})], number=1) == []
    assert totals.added("a", "p1", [(CODE, {"rounds": 13.0})], number=3) == [(CODE, {"rounds": 1.0})]


def test_a_restarted_engine_begins_at_zero_and_a_restarted_supervisor_counts_nothing_twice() -> None:
    totals = Totals()
    totals.added("a", "p1", [(CODE, {"rounds": 100.0})], number=0)
    assert totals.added("a", "p2", [(CODE, {"rounds": 3.0})], number=0) == [(CODE, {"rounds": 3.0})]
    restarted = Totals()
    assert restarted.added("a", "p2", [(CODE, {"rounds": 50.0})], number=7) == []
    assert restarted.added("a", "p2", [(CODE, {"rounds": 51.0})], number=8) == [(CODE, {"rounds": 1.0})]


def test_a_restarted_supervisor_counts_nothing_twice_where_a_partial_report_comes_first() -> None:
    """As where Ray Serve hands a report that was meant for the former supervisor to the new one."""
    totals, chat, new = Totals(), Series("chat", "feature", 1), Series("new", "feature", 1)
    assert totals.added("a", "p", [(CODE, {"rounds": 50.0})], number=4) == []
    full = [(CODE, {"rounds": 51.0}), (chat, {"rounds": 100.0})]
    assert totals.added("a", "p", full, number=5, is_full=True) == [(CODE, {"rounds": 1.0})]
    later = [(chat, {"rounds": 103.0}), (new, {"rounds": 2.0})]
    assert totals.added("a", "p", later, number=6) == [(chat, {"rounds": 3.0}), (new, {"rounds": 2.0})]


def test_rounds_give_acceptance_by_position_and_lengths() -> None:
    served = ServedTotals()
    for proposed, accepted in ((3, 3), (3, 1), (3, 0), (0, 0)):
        series = Series("code", "feature", 2) if proposed else Series("code")
        served.add_round(
            series, proposed=proposed, accepted=accepted, committed=accepted + 1, took_ms=2.0, plain_ms=1.5
        )
    served.add_query("code", 9)
    totals = dict(served.take(everything=False))
    assert totals[Series("code", "feature", 2)] == {
        "rounds": 3.0, "proposed": 9.0, "accepted": 4.0, "committed": 7.0, "length_3": 3.0,
        "decode_ms": 6.0, "plain_ms": 4.5,
        "proposed_at_1": 3.0, "proposed_at_2": 3.0, "proposed_at_3": 3.0,
        "accepted_at_1": 2.0, "accepted_at_2": 1.0, "accepted_at_3": 1.0,
    }  # fmt: skip
    assert totals[Series("code")] == {
        "rounds": 1.0, "plain_rounds": 1.0, "proposed": 0.0, "accepted": 0.0, "length_0": 1.0, "committed": 1.0,
        "decode_ms": 2.0, "plain_ms": 1.5, "queries": 1.0, "output_tokens": 9.0,
    }  # fmt: skip
    assert served.take(everything=False) == ()
    assert len(served.take(everything=True)) == 2


def _count(served: ServedTotals, series: Series) -> None:
    served.add_round(series, proposed=2, accepted=1, committed=2, took_ms=1.0, plain_ms=2.0)


def test_series_that_have_not_changed_for_longest_are_forgotten_and_begin_anew() -> None:
    served, totals = ServedTotals(max_series=3), Totals()

    def report(number: int) -> dict[Series, float]:
        added = totals.added("a", "p", served.take(everything=False), number=number)
        return {series: figures["rounds"] for series, figures in added}

    versions = [Series("code", "feature", number) for number in range(5)]
    for number in range(3):
        _count(served, versions[number])
        _count(served, versions[number])
        assert report(number) == {versions[number]: 2.0}
    _count(served, versions[0])
    assert report(3) == {versions[0]: 1.0}
    _count(served, versions[3])
    assert report(4) == {versions[3]: 1.0}
    assert {series.version for series, _ in served.totals()} == {2, 0, 3}, "1 has not changed for longest"
    _count(served, versions[1])
    assert report(5) == {versions[1]: 1.0}, "it counts from zero again"


def test_the_supervisor_remembers_a_bounded_number_of_series() -> None:
    totals = Totals()
    for number in range(3000):
        added = totals.added("a", "p", [(Series("code", "feature", number), {"rounds": 1.0})], number=number)
        assert len(added) == 1
    assert len(totals._known["a"].last) == 1024


def test_a_domain_that_gave_up_its_place_is_forgotten() -> None:
    clock = Clock()
    served = ServedTotals(clock=clock)
    for number in range(64):
        _count(served, Series(f"domain-{number}", "feature", 1))
    served.take(everything=False)
    clock.now_s += 3 * 86_400
    _count(served, Series("domain-1", "feature", 1))
    served.take(everything=False)
    _count(served, Series("new", "feature", 1))
    names = {series.domain for series, _ in served.totals()}
    assert len(names) == 64 and {"new", "domain-1"} <= names, "one of those without queries has gone"
