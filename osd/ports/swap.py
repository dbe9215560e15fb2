"""What replaces a drafter's weights asks of the engine that serves them, in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from osd.records.acceptance_figures import AcceptanceFigures
from osd.records.version import WeightManifest

if TYPE_CHECKING:
    import torch


class SwapPort(Protocol):
    """One drafter of one engine. Called by one thread, which is not the engine's."""

    def prepare(self, manifest: WeightManifest, state: Mapping[str, torch.Tensor]) -> None:
        """Check a version and make it ready beside the one that serves, which serves on. The last one prepared counts.

        Raises:
            WeightsRefusedError: a tensor is missing, foreign, non-finite or of another shape.
        """
        ...

    def commit(self, *, watch: bool) -> None:
        """Let the version that was prepared serve, between two steps.

        Args:
            watch: compare its acceptance with that of the version before it.
        """
        ...

    def figures(self) -> AcceptanceFigures:
        """Which version serves, and what has been measured of it since it was swapped in."""
        ...

    def count_roll_back(self, *, manual: bool) -> None:
        """Count a roll-back in the engine's counters."""
        ...
