"""Shares a device between serving and training: training yields to the busiest engine on its device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from osd.config.trainer import TrainerConfig
from osd.fleet.heartbeat import DistillerReport, EngineReport
from osd.records.status import SpareStatus

_GONE_AFTER_S = 10.0
"""A distiller that is silent for so long has died, and must not slow engines down."""
_WINDOW_S = 60.0
"""Over which shares are measured."""


def leaves_room(utilisation: float, config: TrainerConfig) -> bool:
    """Whether an engine that is busy this share of the time leaves room for training."""
    return utilisation < config.max_utilisation or config.max_utilisation >= 1.0


def shares_device(engine: EngineReport, distiller: DistillerReport) -> bool:
    """Whether training there takes time from this engine."""
    return engine.node == distiller.node and (not distiller.device or engine.device == distiller.device)


class _Sample(NamedTuple):
    at_s: float
    training_s: float
    paused_s: dict[tuple[str, str], float]
    """By engine and incarnation."""


class SpareCompute:
    """Grants training a share of the busy engines on its device, and measures what it takes.

    Args:
        config: the `trainer` section.
        clock: monotonic seconds.
    """

    def __init__(self, config: TrainerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._distiller: DistillerReport | None = None
        self._heard_s = 0.0
        self._neighbours: tuple[EngineReport, ...] = ()
        self._samples: deque[_Sample] = deque()

    def take(self, report: DistillerReport, engines: Sequence[EngineReport]) -> float:
        """Take the distiller's report, with the engines present; returns the busiest neighbour's utilisation."""
        self._distiller, self._heard_s = report, self._clock()
        self._neighbours = tuple(engine for engine in engines if shares_device(engine, report))
        paused_s = {(engine.engine_id, engine.incarnation): engine.paused_s for engine in self._neighbours}
        self._samples.append(_Sample(self._heard_s, report.status.training_s, paused_s))
        while self._samples[0].at_s < self._heard_s - _WINDOW_S:
            self._samples.popleft()
        return self._utilisation()

    def share_for(self, engine: EngineReport) -> float:
        """Share of its time that an engine has to leave to training: none if it shares no device with it, or idles."""
        distiller = self._distiller
        if distiller is None or self._clock() - self._heard_s > _GONE_AFTER_S or not shares_device(engine, distiller):
            return 0.0
        if leaves_room(engine.utilisation, self._config):
            return 0.0
        return min(distiller.wanted_share, self._config.max_serving_cost)

    @property
    def has_neighbours(self) -> bool:
        """Whether an engine is known that shares the distiller's device."""
        return bool(self._neighbours)

    def granted(self) -> float:
        """The largest share that a neighbour leaves to training."""
        return max(map(self.share_for, self._neighbours), default=0.0)

    def status(self) -> SpareStatus | None:
        """What training takes and costs; None while no distiller reports."""
        if self._distiller is None or self._clock() - self._heard_s > _WINDOW_S:
            return None
        first, last = self._samples[0], self._samples[-1]
        span_s = max(last.at_s - first.at_s, 1e-9)
        # A restarted distiller counts from zero.
        trained_s = max(last.training_s - first.training_s, 0.0)
        return SpareStatus(
            neighbours=tuple(engine.engine_id for engine in self._neighbours),
            utilisation=self._utilisation(),
            share=self.granted(),
            training=min(trained_s / span_s, 1.0),
            serving_cost=max(map(self._paused_share, last.paused_s), default=0.0),
        )

    def _paused_share(self, engine: tuple[str, str]) -> float:
        """Share of the time that an engine paused, since its first report in the window."""
        first, last = next(one for one in self._samples if engine in one.paused_s), self._samples[-1]
        return (last.paused_s[engine] - first.paused_s[engine]) / max(last.at_s - first.at_s, 1e-9)

    def _utilisation(self) -> float:
        return max((engine.utilisation for engine in self._neighbours), default=0.0)
