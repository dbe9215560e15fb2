"""A clock that is off is told of in one line."""

from __future__ import annotations

import pytest

from osd.fleet.clock_skew import ClockSkew, skew_message


@pytest.mark.parametrize(("ahead_s", "says"), [(42.4, "is 42 s ahead of"), (-3600.0, "is 3600 s behind")])
def test_a_clock_that_is_off(ahead_s: float, says: str) -> None:
    message = skew_message("engine a's node", ahead_s, "the supervisor's")
    assert message == (
        f"the clock of engine a's node {says} the supervisor's, so times of its events are off; "
        "synchronise the nodes' clocks (NTP)"
    )


def test_what_a_report_takes_is_no_skew() -> None:
    assert skew_message("a", -4.0, "b") == "" and skew_message("a", 4.0, "b") == ""


def test_a_clock_that_stays_off_is_told_of_once_and_again_after_it_was_right() -> None:
    skew = ClockSkew()
    told = [skew.take("a", -40.0) for _ in range(10)]
    assert [bool(message) for message in told] == [False] * 4 + [True] + [False] * 5
    assert not any(skew.take("a", 0.1) for _ in range(5))
    assert any(skew.take("a", 40.0) for _ in range(5))


def test_reports_that_waited_for_a_restarted_supervisor_are_no_clock_that_is_behind() -> None:
    skew = ClockSkew()
    ages_s = [-9.0, -8.0, -6.0, -5.5, -0.2, -0.1, -0.1]
    assert not any(skew.take("a", age_s) for age_s in ages_s)
