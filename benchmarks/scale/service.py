"""A service of many engines as a model: queries, outcomes through Redis to the distiller, reports, a new version."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass

from benchmarks.scale.costs import Costs
from benchmarks.scale.events import Events, Station
from osd.config.outcomes import OutcomesConfig
from osd.fleet.record_share import RecordShare, is_recorded

_LOOK_S = 2.0
"""Pause between two looks at what was written (see actors/supervisor/stream_keeper.py)."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the service, and what it runs on."""

    queries_per_s: float
    """Of each engine."""
    num_ingress: int = 2
    report_interval_s: float = 1.0
    store_bytes_per_s: float = 1e9
    """From which engines fetch versions."""
    num_shards: int = 1
    """Redis servers over which the outcome stream is spread, by engine. osd has one; more are simulated only."""
    engine_bytes_per_s: float = 1e9
    """At which an engine could hand a version on to another; simulated only."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it."""

    engines: int
    redis: float
    """Utilisation, of the busiest; as the next three."""
    distiller: float
    supervisor: float
    router: float
    dropped: float
    """Share of the outcomes that an engine could not hand over."""
    unread: float
    """Share of the outcomes that the stream dropped before the distiller read them."""
    record_share: float
    record_late_ms: float
    """The wait for Redis that one outcome in a hundred exceeds."""
    mbytes_per_s: float
    """Written to the stream."""
    fan_out_s: float
    """Until every engine has fetched a version."""
    tree_fan_out_s: float
    """The same if one engine fetched it, and every engine that has it handed it on to one other at a time."""

    @property
    def worst(self) -> str:
        """The part that fails or is about to; empty if none."""
        loads = {
            "Redis": self.redis,
            "distiller's intake": self.distiller,
            "supervisor": self.supervisor,
            "router": self.router,
        }
        worst = max(loads, key=lambda name: loads[name])
        if loads[worst] > 0.8:
            return worst
        return "stream" if self.dropped + self.unread > 0.001 else ""


def simulate(
    num_engines: int,
    costs: Costs,
    load: Load,
    config: OutcomesConfig,
    *,
    seconds: float,
    limited: bool,
    seed: int = 0,
) -> Result:
    """Run a service for a while.

    Args:
        num_engines: of the service.
        costs: of its shared parts.
        load: what is asked of it.
        config: bounds of stream and recorder.
        seconds: of simulated time.
        limited: engines record a share of their queries where `max_bytes_per_s` would be exceeded.
        seed: of the arrivals.
    """
    return _Service(num_engines, costs, load, config, limited, seed).run(seconds)


class _Service:
    def __init__(
        self, num_engines: int, costs: Costs, load: Load, config: OutcomesConfig, limited: bool, seed: int
    ) -> None:
        self.num_engines, self.costs, self.load, self.config, self.limited = num_engines, costs, load, config, limited
        self.chance, self.events = random.Random(seed), Events()
        self.distiller, self.supervisor = Station(self.events), Station(self.events)
        self.redis = [Station(self.events) for _ in range(load.num_shards)]
        self.routers = [Station(self.events) for _ in range(load.num_ingress)]
        self.share = RecordShare(config.max_bytes_per_s)
        self.queued = [0] * num_engines
        """Outcomes in each engine's memory, the one that is being written included."""
        self.stream: deque[None] = deque()
        """Outcomes that were not read."""
        self.most_unread = load.num_shards * min(config.max_entries, int(config.max_bytes / costs.outcome_bytes))
        self.is_reading = False
        self.num_queries = self.num_offered = self.num_dropped = self.num_unread = self.num_written = 0

    def run(self, seconds: float) -> Result:
        self._next_query()
        for engine in range(self.num_engines):
            self.events.at(self.load.report_interval_s * engine / self.num_engines, self._report)
        if self.limited:
            self._look()
        self.events.run(seconds)
        offered = max(self.num_offered, 1)
        return Result(
            engines=self.num_engines,
            redis=max(redis.utilisation(seconds) for redis in self.redis),
            distiller=self.distiller.utilisation(seconds),
            supervisor=self.supervisor.utilisation(seconds),
            router=max(router.utilisation(seconds) for router in self.routers),
            dropped=self.num_dropped / offered,
            unread=self.num_unread / offered,
            record_share=self.share.share,
            record_late_ms=1e3 * max(redis.late_s() for redis in self.redis),
            mbytes_per_s=self.num_written * self.costs.outcome_bytes / seconds / 1e6,
            fan_out_s=self.num_engines * self.costs.weights_bytes / self.load.store_bytes_per_s,
            tree_fan_out_s=self._tree_fan_out_s(),
        )

    def _tree_fan_out_s(self) -> float:
        """The number of engines that have the version doubles with each copy."""
        num_copies = math.ceil(math.log2(self.num_engines))
        first_s = self.costs.weights_bytes / self.load.store_bytes_per_s
        return first_s + num_copies * self.costs.weights_bytes / self.load.engine_bytes_per_s

    def _next_query(self) -> None:
        pause_s = self.chance.expovariate(self.num_engines * self.load.queries_per_s)
        self.events.at(self.events.now_s + pause_s, self._query)

    def _query(self) -> None:
        self._next_query()
        self.num_queries += 1
        engine = self.chance.randrange(self.num_engines)
        router = self.routers[self.num_queries % len(self.routers)]
        router.serve(self.costs.route_s * self.num_engines, lambda: self._end(engine))

    def _end(self, engine: int) -> None:
        """A query has been answered; how long that took is no matter here."""
        if self.limited and not is_recorded(str(self.num_queries), self.share.share):
            return
        self.num_offered += 1
        if self.queued[engine] >= self.config.queue_entries:
            self.num_dropped += 1
            return
        self.queued[engine] += 1
        if self.queued[engine] == 1:
            self._put(engine)

    def _put(self, engine: int) -> None:
        self.redis[engine % len(self.redis)].serve(self.costs.put_s, lambda: self._written(engine))

    def _written(self, engine: int) -> None:
        self.num_written += 1
        self.stream.append(None)
        if len(self.stream) > self.most_unread:
            self.stream.popleft()
            self.num_unread += 1
        self.queued[engine] -= 1
        if self.queued[engine]:
            self._put(engine)
        if not self.is_reading:
            self._read()

    def _read(self) -> None:
        self.is_reading = bool(self.stream)
        if self.is_reading:
            self.stream.popleft()
            self.distiller.serve(self.costs.read_s, self._read)

    def _report(self) -> None:
        self.supervisor.serve(self.costs.report_s)
        self.events.at(self.events.now_s + self.load.report_interval_s, self._report)

    def _look(self) -> None:
        self.share.look(self.num_written * self.costs.outcome_bytes, self.events.now_s + 1e-9, self.num_dropped)
        self.events.at(self.events.now_s + _LOOK_S, self._look)
