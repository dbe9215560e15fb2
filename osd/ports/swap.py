"""The Protocol through which a drafter's versions are swapped in an engine, in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from osd.records.version import WeightManifest

if TYPE_CHECKING:
    import torch


class SwapPort(Protocol):
    """Swaps one drafter of one engine. Called by one thread other than the engine's."""

    def prepare(self, manifest: WeightManifest, state: Mapping[str, torch.Tensor]) -> None:
        """Check a version and prepare it while the present one serves. A later call replaces an earlier one.

        Raises:
            WeightsRefusedError: a tensor is missing, unknown or of another shape, or holds NaN or infinity.
        """
        ...

    def commit(self) -> None:
        """Put the prepared version in use, between two steps."""
        ...

    def serving(self) -> int:
        """The version in use."""
        ...
