"""The simulation against what queueing theory says, and where stated costs put the first limit."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from benchmarks.scale.costs import Costs
from benchmarks.scale.events import Events, Station
from benchmarks.scale.service import Load, Result, simulate
from osd.config.outcomes import OutcomesConfig

_COSTS = Costs(outcome_bytes=1e5, put_s=1e-3, read_s=1e-3, report_s=1e-4, route_s=1e-7, weights_bytes=1e8)
_LOAD = Load(queries_per_s=10.0)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_waits_are_those_of_a_queue_with_random_arrivals_and_equal_services(load: float) -> None:
    """Pollaczek and Khinchine: the mean wait is load / (2 (1 - load)) services."""
    events, chance = Events(), random.Random(1)
    station = Station(events)
    at_s = 0.0
    for _ in range(40_000):
        at_s += chance.expovariate(load)
        events.at(at_s, lambda: station.serve(1.0))
    events.run(at_s)
    assert sum(station.waits_s) / len(station.waits_s) == pytest.approx(load / (2 * (1 - load)), rel=0.1)
    assert station.utilisation(at_s) == pytest.approx(load, rel=0.02)


def _run(num_engines: int, limited: bool = False, **config: int) -> Result:
    return simulate(num_engines, _COSTS, _LOAD, OutcomesConfig(**config), seconds=20.0, limited=limited)


def test_a_part_fails_where_its_work_exceeds_its_time() -> None:
    """Ten queries/s an engine and a millisecond each: Redis is full at a hundred engines."""
    half = _run(50)
    assert half.redis == pytest.approx(0.5, rel=0.05) and half.worst == ""
    assert half.dropped == half.unread == 0.0
    assert half.supervisor == pytest.approx(50 * 1e-4, rel=0.1)
    assert half.mbytes_per_s == pytest.approx(50.0, rel=0.05)
    assert half.fan_out_s == 5.0
    full = _run(95)
    assert full.redis == pytest.approx(0.95, rel=0.05) and full.worst in ("Redis", "distiller's intake")
    assert full.record_late_ms > half.record_late_ms


def test_more_shards_move_the_limit_to_the_one_distiller() -> None:
    """Four Redis servers have a quarter of the work each; the distiller reads what all of them hold."""
    sharded = simulate(80, _COSTS, replace(_LOAD, num_shards=4), OutcomesConfig(), seconds=20.0, limited=False)
    assert sharded.redis == pytest.approx(0.2, rel=0.1)
    assert sharded.distiller == pytest.approx(0.8, rel=0.1)
    assert sharded.mbytes_per_s == pytest.approx(80.0, rel=0.05)


@pytest.mark.parametrize(("num_engines", "tree_s"), [(1, 0.1), (2, 0.2), (64, 0.7), (65, 0.8), (1000, 1.1)])
def test_a_tree_doubles_the_engines_that_have_a_version_with_each_copy(num_engines: int, tree_s: float) -> None:
    """A copy of 100 MB takes 0.1 s; all from one store, 1,000 engines take 100 s."""
    result = simulate(num_engines, _COSTS, _LOAD, OutcomesConfig(), seconds=0.1, limited=False)
    assert result.tree_fan_out_s == pytest.approx(tree_s)
    assert result.fan_out_s == pytest.approx(0.1 * num_engines)


def test_beyond_it_engines_drop_what_they_cannot_hand_over() -> None:
    over = _run(200, queue_entries=4)
    assert over.dropped == pytest.approx(0.5, abs=0.05)


def test_a_slow_distiller_leaves_outcomes_unread() -> None:
    slow = Costs(1e5, 1e-4, 1e-2, 1e-4, 1e-7, 1e8)
    result = simulate(50, slow, _LOAD, OutcomesConfig(max_entries=10), seconds=20.0, limited=False)
    assert result.unread == pytest.approx(0.8, abs=0.05)  # 100 of 500 a second are read


def test_with_a_share_recorded_the_stream_keeps_its_limit() -> None:
    """A hundred engines would write 100 MB/s; after the first look they write 20."""
    result = _run(100, limited=True, max_bytes_per_s=20_000_000)
    assert result.record_share == pytest.approx(0.2, rel=0.15)
    assert 20.0 < result.mbytes_per_s < 33.0  # the first two of twenty seconds in full
    assert result.dropped == 0.0 and result.worst == ""
    free = _run(10, limited=True, max_bytes_per_s=20_000_000)
    assert free.record_share == 1.0
