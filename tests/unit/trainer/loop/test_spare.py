"""Training has the lowest priority, and nothing else in its process has."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from trainer.loop.spare import lower_priority

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a priority belongs to the process")


def _of_a_thread(nice: int) -> list[tuple[int, int]]:
    """Niceness and policy of a thread that lowers its priority, and of one that this thread starts."""
    found: list[tuple[int, int]] = []

    def look() -> None:
        found.append((os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), os.sched_getscheduler(0)))

    def lower() -> None:
        lower_priority(nice)
        look()
        started = threading.Thread(target=look)
        started.start()
        started.join(timeout=30)

    thread = threading.Thread(target=lower)
    thread.start()
    thread.join(timeout=30)
    return found


def test_the_lowest_priority_gives_way_at_once_also_in_threads_started_later() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), os.sched_getscheduler(0)
    assert _of_a_thread(19) == [(19, os.SCHED_IDLE)] * 2
    assert (os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), os.sched_getscheduler(0)) == before


def test_another_niceness_is_only_that() -> None:
    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert _of_a_thread(2) == [(min(before + 2, 19), os.SCHED_OTHER)] * 2
