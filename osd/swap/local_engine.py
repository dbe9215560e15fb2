"""The swap port of an engine in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from osd.engine.loop import EngineLoop
from osd.models.target import Target
from osd.ports.drafter import Drafter, SwapIn, Swappable
from osd.records.version import WeightManifest

MakeDrafter = Callable[[str, WeightManifest, Target], Drafter]
"""Makes a drafter of a given name for a target, with the shapes in a version's manifest; weights are loaded later."""


class _Prepared(NamedTuple):
    name: str
    manifest: WeightManifest
    state: Mapping[str, Tensor]
    drafter: Drafter
    base: Drafter
    """The engine's first drafter when the version was prepared."""
    swap_in: SwapIn | None
    """None: the drafter is new, and has the weights already."""


class LocalEngine:
    """Implements `osd.ports.swap.SwapPort` for an engine in this process.

    Args:
        loop: runs the engine.
        make: makes the drafter of a domain that has none in memory; None: the engine serves no such drafters.
    """

    def __init__(self, loop: EngineLoop, make: MakeDrafter | None = None) -> None:
        self._loop, self._make = loop, make
        self._prepared: _Prepared | None = None

    def prepare(self, name: str, manifest: WeightManifest, state: Mapping[str, Tensor]) -> None:
        """See `SwapPort`. Runs on the caller's thread, so that no row waits."""
        with self._loop.changing:
            self._prepared = self._made_ready(name, manifest, state)

    def commit(self) -> None:
        """See `SwapPort`."""
        assert self._prepared is not None
        with self._loop.changing:
            ready = self._prepared
            present, base, _ = self._serving(ready.name)
            is_there = present is ready.drafter if ready.swap_in is not None else present is None
            if base is not ready.base or not is_there:
                # Since `prepare`, compiled kernels took over, or the drafter was removed to make room for another one.
                ready = self._made_ready(ready.name, ready.manifest, ready.state)
            name, manifest, _, drafter, _, swap_in = ready
            if swap_in is None:
                self._loop.call(lambda engine: engine.add_drafter(drafter, manifest)).result()
            else:
                self._loop.call(lambda engine: engine.load_drafter(name, manifest, swap_in)).result()
        self._prepared = None

    def remove(self, name: str) -> None:
        """See `SwapPort`."""
        with self._loop.changing:
            self._loop.call(lambda engine: engine.remove_drafter(name)).result()

    def serving(self, name: str) -> int | None:
        """See `SwapPort`."""
        drafter = self._serving(name)[0]
        return None if drafter is None else drafter.id.version

    def _made_ready(self, name: str, manifest: WeightManifest, state: Mapping[str, Tensor]) -> _Prepared:
        drafter, base, target = self._serving(name)
        if drafter is not None:
            assert isinstance(drafter, Swappable)
            return _Prepared(name, manifest, state, drafter, base, drafter.prepare(state, manifest.number))
        assert self._make is not None
        made = self._make(name, manifest, target)
        assert isinstance(made, Swappable)
        made.prepare(state, manifest.number)()
        return _Prepared(name, manifest, state, made, base, None)

    def _serving(self, name: str) -> tuple[Drafter | None, Drafter, Target]:
        """The drafter with this name, the first drafter, and the target."""
        return self._loop.call(
            lambda engine: (engine.drafter(name), engine.policy.arms[0].drafter, engine.target)
        ).result()
