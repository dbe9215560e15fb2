"""Keeps training from slowing down serving: the lowest priority of its thread."""

from __future__ import annotations

import os
from contextlib import suppress

_LOWEST = 19


def lower_priority(nice: int) -> None:
    """Lower the calling thread's priority, and that of threads that it starts, below the engine's.

    Call it before the process first uses a GPU. With niceness 19 the thread is also put under Linux' `SCHED_IDLE`, so
    that any other thread takes over its core at once. A thread that is only niced may keep the core for milliseconds,
    and since an engine's threads wait for one another several times a layer, all of them would lose that time.

    Args:
        nice: added to the thread's niceness; 19 is the lowest priority.
    """
    os.nice(nice)
    if nice == _LOWEST and hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):  # a sandbox may forbid it; the niceness stays
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    # The priority on a GPU that runs CUDA's Multi-Process Service; without MPS it has no effect.
    os.environ.setdefault("CUDA_MPS_CLIENT_PRIORITY", "1")
