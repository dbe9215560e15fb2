"""Training takes what serving leaves: the lowest priority for its process, and no step while the engine is busy."""

from __future__ import annotations

import os

from osd.config.settings import TrainerConfig


def lower_priority(nice: int) -> None:
    """Put this process behind the engine's; before it first touches a GPU.

    Args:
        nice: what is added to its niceness; 19 is the lowest priority.
    """
    os.nice(nice)
    # The same on a GPU, where its Multi-Process Service runs: below the engine's.
    os.environ.setdefault("CUDA_MPS_CLIENT_PRIORITY", "1")


def leaves_room(utilisation: float, config: TrainerConfig) -> bool:
    """Whether an engine that is busy for this share of the time leaves enough to train."""
    return utilisation < config.max_utilisation or config.max_utilisation >= 1.0
