"""The Protocol through which a drafter's versions are swapped in an engine, in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from osd.records.version import WeightManifest

if TYPE_CHECKING:
    import torch


class SwapPort(Protocol):
    """Swaps the drafters of one engine, by name. Called by one thread other than the engine's."""

    def prepare(self, name: str, manifest: WeightManifest, state: Mapping[str, torch.Tensor]) -> None:
        """Check a version and prepare it while the present one serves. A later call replaces an earlier one.

        A domain's drafter that is not in the engine's memory is made.

        Raises:
            WeightsRefusedError: a tensor is missing, unknown or of another shape, or holds NaN or infinity.
            OsdError: a drafter of this configuration cannot be made.
        """
        ...

    def commit(self) -> None:
        """Put the prepared version in use, between two steps."""
        ...

    def remove(self, name: str) -> None:
        """Serve a domain with the base drafter again."""
        ...

    def serving(self, name: str) -> int | None:
        """The version in use; None if no drafter with this name is in memory."""
        ...
