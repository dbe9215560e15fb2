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
        condition: asked every few milliseconds at first, then less often, up to ten times a second: many conditions ask
            a service that tests beside this one need, too.
        what: for the message of a failure.
        timeout_s: when to give up.

    Raises:
        AssertionError: it did not come true in time.
    """
    started_s = time.monotonic()
    while (waited_s := time.monotonic() - started_s) < timeout_s:
        if value := condition():
            return value
        time.sleep(min(max(0.05 * waited_s, 0.005), 0.1))
    if value := condition():  # a process that was stopped meanwhile asks once more
        return value
    raise AssertionError(f"waited {timeout_s:g} s for {what}")
