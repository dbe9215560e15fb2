"""A domain's drafter versions as its trainer sees them: until there are any, the base drafter's latest."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from osd.ports.weight_store import WeightStore
from osd.records.errors import WeightsRefusedError
from osd.records.version import Confirmed, WeightManifest

BASE_VERSION = -1
"""Stands for the base drafter's latest version, whichever that is, while it serves the domain."""


class BranchStore:
    """Implements `osd.ports.WeightStore` for the trainer of a domain's drafter.

    While the domain has no version in service, `latest` is the base drafter under the number `BASE_VERSION`, so that a
    candidate starts from it, and must beat what it has become by then.

    Args:
        own: the versions of the domain's drafter.
        base: those of the base drafter.
        on_first: called before a version is published while the base drafter serves the domain.
    """

    def __init__(self, own: WeightStore, base: WeightStore, on_first: Callable[[], None]) -> None:
        self._own, self._base, self._on_first = own, base, on_first

    def publish(
        self,
        state: Mapping[str, Tensor],
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
        """See `WeightStore`."""
        if parent == BASE_VERSION:
            self._on_first()
            parent, note = None, note or f"beat the base drafter's version {self._of_base().number}"
        return self._own.publish(
            state,
            kind=kind,
            config=config,
            parent=parent,
            training_step=training_step,
            stream_position=stream_position,
            gate=gate,
            note=note,
            fence=fence,
        )

    def latest(self) -> WeightManifest | None:
        """See `WeightStore`."""
        return self._own.latest() or replace(self._of_base(), number=BASE_VERSION)

    def load(self, number: int) -> tuple[WeightManifest, dict[str, Tensor]]:
        """See `WeightStore`."""
        return self._own.load(number) if number != BASE_VERSION else self._base.load(self._of_base().number)

    def list(self) -> builtins.list[WeightManifest]:
        """See `WeightStore`."""
        return self._own.list()

    def roll_back(self, *, to: int | None = None, reason: str) -> WeightManifest:
        """See `WeightStore`."""
        return self._own.roll_back(to=to, reason=reason)

    def reject(self, number: int, *, reason: str) -> WeightManifest:
        """See `WeightStore`."""
        return self._own.reject(number, reason=reason)

    def confirmed(self) -> Confirmed | None:
        """See `WeightStore`."""
        return self._own.confirmed()

    def to_start_with(self) -> WeightManifest | None:
        """See `WeightStore`."""
        return self._own.to_start_with() or self.latest()

    def _of_base(self) -> WeightManifest:
        found = self._base.latest()
        if found is None:
            raise WeightsRefusedError("the base drafter has no version")
        return found
