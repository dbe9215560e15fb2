"""Totals of engines: differences, whatever is lost, repeated or restarted."""

from __future__ import annotations

from osd.meters.served_totals import ServedTotals
from osd.monitor.buckets import Series
from osd.monitor.totals import Totals

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
