"""The Protocol of a store of drafter versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from osd.records.version import Confirmed, WeightManifest

if TYPE_CHECKING:
    import torch


class WeightStore(Protocol):
    """Stores drafter versions; publishes them atomically, and refuses damaged ones."""

    def publish(
        self,
        state: Mapping[str, torch.Tensor],
        *,
        kind: str,
        config: Mapping[str, Any],
        parent: int | None,
        training_step: int = 0,
        stream_position: str = "",
        gate: Mapping[str, float] | None = None,
        note: str = "",
        fence: int = 0,
    ) -> WeightManifest:
        """Write a new version (number = newest + 1) and point `latest` at it."""
        ...

    def latest(self) -> WeightManifest | None:
        """The version to serve; None if nothing was published."""
        ...

    def load(self, number: int) -> tuple[WeightManifest, dict[str, torch.Tensor]]:
        """Read and check one version.

        Raises:
            WeightsRefusedError: it is missing or damaged, or does not match its manifest.
        """
        ...

    def list(self) -> list[WeightManifest]:
        """Every readable version, oldest first."""
        ...

    def roll_back(self, *, to: int | None = None, reason: str) -> WeightManifest:
        """Mark the latest version as rolled back and point `latest` at `to` (default: the newest intact one before).

        Raises:
            WeightsRefusedError: there is no version to go back to.
        """
        ...

    def reject(self, number: int, *, reason: str) -> WeightManifest:
        """Mark one version as rolled back; returns the latest after that.

        Raises:
            WeightsRefusedError: it is the latest, and there is no version to go back to.
        """
        ...

    def confirmed(self) -> Confirmed | None:
        """The version that passed its trial, or that an operator pinned; None if that is not known."""
        ...

    def to_start_with(self) -> WeightManifest | None:
        """The version that an engine starts with: the one that passed its trial, or the latest where none did."""
        ...
