"""Tasks are shared: every one is done, once, whoever is there to do it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit, prange

from osd.kernels.cpu.arguments import COUNTERS
from osd.kernels.cpu.sharing import later, shared, turns_at


@njit
def _alone(counters: Any, thread: int, num_threads: int, drawn_N: Any) -> int:
    """What one of several threads draws where the others never come."""
    num = 0
    for task in shared(later(turns_at(counters, thread, num_threads), 1), len(drawn_N)):
        drawn_N[num] = task
        num += 1
    return num


@njit(parallel=True)
def _together(counters: Any, num_threads: int, done_PN: Any) -> None:
    """Phase after phase; a task finds what it depends on done."""
    for thread in prange(num_threads):
        for phase in range(len(done_PN)):
            for task in shared(later(turns_at(counters, thread, num_threads), phase), done_PN.shape[1]):
                before = 1 if phase == 0 else done_PN[phase - 1].min()
                done_PN[phase, task] += before


def _counters(num_phases: int) -> Any:
    return np.zeros((num_phases, COUNTERS), np.int64)


@pytest.mark.parametrize("num_tasks", [0, 1, 5, 64])
@pytest.mark.parametrize(("thread", "num_threads"), [(0, 1), (0, 2), (1, 2), (2, 3), (8, 9), (30, 32)])
def test_one_thread_does_all_and_its_own_part_first(thread: int, num_threads: int, num_tasks: int) -> None:
    drawn_N = np.full(num_tasks, -1)
    assert _alone(_counters(2), thread, num_threads, drawn_N) == num_tasks
    assert sorted(drawn_N) == list(range(num_tasks))
    if num_threads < COUNTERS:
        own = range(thread * num_tasks // num_threads, (thread + 1) * num_tasks // num_threads)
        assert list(drawn_N[: len(own)]) == list(own)


@pytest.mark.parametrize("num_threads_told", [1, 2])
def test_nobody_goes_on_before_all_is_done(num_threads_told: int) -> None:
    done_PN = np.zeros((40, 17), np.int64)
    _together(_counters(len(done_PN)), num_threads_told, done_PN)
    assert (done_PN == 1).all()
