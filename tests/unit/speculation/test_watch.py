"""An engine counts the rounds of its drafter's versions for the referee."""

from __future__ import annotations

from osd.fleet.heartbeat import QueryRounds
from osd.speculation.watch import SwapWatch


def test_rounds_are_told_as_totals_and_only_if_they_changed() -> None:
    watch = SwapWatch(400)
    watch.observe(1, "a", True)
    watch.observe(1, "a", False)
    watch.observe(1, "b", True)
    assert watch.take(everything=False) == (QueryRounds(1, "a", 2, 1), QueryRounds(1, "b", 1, 1))
    assert watch.take(everything=False) == ()
    watch.observe(2, "b", False)
    watch.observe(1, "b", False)
    assert watch.take(everything=False) == (QueryRounds(1, "b", 2, 1), QueryRounds(2, "b", 1, 0))
    assert watch.take(everything=True) == (
        QueryRounds(1, "a", 2, 1),
        QueryRounds(1, "b", 2, 1),
        QueryRounds(2, "b", 1, 0),
    )


def test_rounds_are_wanted_of_queries_that_can_help_while_a_version_is_judged() -> None:
    watch = SwapWatch(400)
    assert not watch.wants_rounds(1, ["any"])
    watch.is_judged = True
    assert not watch.wants_rounds(1, [])
    for _ in range(20):
        assert watch.wants_rounds(1, ["one"])
        watch.observe(1, "one", True)
    assert not watch.wants_rounds(1, ["one"])
    assert watch.wants_rounds(1, ["one", "two"])
    assert watch.wants_rounds(2, ["one"])
    watch.observe(1, "one", True)
    assert watch.take(everything=True) == (QueryRounds(1, "one", 20, 20),)


def test_only_the_last_versions_are_remembered() -> None:
    watch = SwapWatch(400)
    for version in range(1, 6):
        watch.observe(version, "a", True)
    assert [rounds.version for rounds in watch.take(everything=True)] == [3, 4, 5]
