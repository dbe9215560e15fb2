"""The swap port of an engine in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from osd.engine.loop import EngineLoop
from osd.ports.drafter import Drafter, SwapIn, Swappable
from osd.records.version import WeightManifest


class _Prepared(NamedTuple):
    manifest: WeightManifest
    state: Mapping[str, Tensor]
    drafter: Drafter
    swap_in: SwapIn


class LocalEngine:
    """Implements `osd.ports.swap.SwapPort` for an engine in this process.

    Args:
        loop: runs the engine.
        drafter: name of the drafter whose versions are swapped.
    """

    def __init__(self, loop: EngineLoop, drafter: str) -> None:
        self._loop, self._name = loop, drafter
        self._prepared: _Prepared | None = None

    def prepare(self, manifest: WeightManifest, state: Mapping[str, Tensor]) -> None:
        """See `SwapPort`. Runs on the caller's thread, so that no row waits."""
        with self._loop.changing:
            self._prepared = self._made_ready(manifest, state)

    def commit(self) -> None:
        """See `SwapPort`."""
        assert self._prepared is not None
        with self._loop.changing:
            manifest, state, drafter, swap_in = self._prepared
            if self._drafter() is not drafter:  # compiled kernels have taken over meanwhile
                swap_in = self._made_ready(manifest, state).swap_in
            self._loop.call(lambda engine: engine.load_drafter(manifest, swap_in)).result()
        self._prepared = None

    def serving(self) -> int:
        """See `SwapPort`."""
        return self._drafter().id.version

    def _made_ready(self, manifest: WeightManifest, state: Mapping[str, Tensor]) -> _Prepared:
        drafter = self._drafter()
        assert isinstance(drafter, Swappable)
        return _Prepared(manifest, state, drafter, drafter.prepare(state, manifest.number))

    def _drafter(self) -> Drafter:
        return self._loop.call(lambda engine: engine.arm(self._name).drafter).result()
