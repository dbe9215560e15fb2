"""Waiting for what another thread or process does: on its condition, and never for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 90.0
"""Far more than anything takes on a slow machine: only a test that fails waits as long."""


def wait_for(condition: Callable[[], T | None], what: str = "a condition", timeout_s: float = PATIENCE_S) -> T:
    """The condition's first true value.

    Args:
        condition: asked every few milliseconds.
        what: for the message of a failure.
        timeout_s: when to give up.

    Raises:
        AssertionError: it did not come true in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if value := condition():
            return value
        time.sleep(0.005)
    if value := condition():  # a process that was stopped meanwhile asks once more
        return value
    raise AssertionError(f"waited {timeout_s:g} s for {what}")
