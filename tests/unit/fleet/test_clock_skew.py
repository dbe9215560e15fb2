"""A clock that is off is told of in one line."""

from __future__ import annotations

import pytest

from osd.fleet.clock_skew import skew_message


@pytest.mark.parametrize(("ahead_s", "says"), [(42.4, "is 42 s ahead of"), (-3600.0, "is 3600 s behind")])
def test_a_clock_that_is_off(ahead_s: float, says: str) -> None:
    message = skew_message("engine a's node", ahead_s, "the supervisor's")
    assert message == (
        f"the clock of engine a's node {says} the supervisor's, so times of its events are off; "
        "synchronise the nodes' clocks (NTP)"
    )


def test_what_a_report_takes_is_no_skew() -> None:
    assert skew_message("a", -4.0, "b") == "" and skew_message("a", 4.0, "b") == ""
