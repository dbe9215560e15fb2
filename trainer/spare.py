"""Keeps training from slowing down serving: lowest process priority, and no step while the engine is busy."""

from __future__ import annotations

import os

from osd.config.settings import TrainerConfig


def lower_priority(nice: int) -> None:
    """Lower this process's priority below the engine's; call it before the process first uses a GPU.

    Args:
        nice: added to the process's niceness; 19 is the lowest priority.
    """
    os.nice(nice)
    # The priority on a GPU that runs CUDA's Multi-Process Service; without MPS it has no effect.
    os.environ.setdefault("CUDA_MPS_CLIENT_PRIORITY", "1")


def leaves_room(utilisation: float, config: TrainerConfig) -> bool:
    """Whether an engine that is busy this share of the time leaves room for training."""
    return utilisation < config.max_utilisation or config.max_utilisation >= 1.0
