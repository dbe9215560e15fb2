"""One line that says why something failed, whatever the error's message looks like."""

from __future__ import annotations

import pytest

from osd.records.errors import reason


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("no such file"), "no such file"),
        (ValueError("\n  two lines\nhint"), "two lines"),
        (ValueError("a\u2028b\x85c\nd"), "a\u2028b\x85c"),
        (KeyError(), "KeyError"),
        (RuntimeError("\n \n"), "RuntimeError"),
    ],
)
def test_the_first_line_that_says_something(error: Exception, expected: str) -> None:
    assert reason(error) == expected
