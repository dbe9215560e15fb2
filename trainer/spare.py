"""Keeps training from slowing down serving: the lowest process priority."""

from __future__ import annotations

import os


def lower_priority(nice: int) -> None:
    """Lower this process's priority below the engine's; call it before the process first uses a GPU.

    Args:
        nice: added to the process's niceness; 19 is the lowest priority.
    """
    os.nice(nice)
    # The priority on a GPU that runs CUDA's Multi-Process Service; without MPS it has no effect.
    os.environ.setdefault("CUDA_MPS_CLIENT_PRIORITY", "1")
