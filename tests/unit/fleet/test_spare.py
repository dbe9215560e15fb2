"""Training yields to the busiest engine on its device, and what it takes and costs is measured."""

from __future__ import annotations

from typing import Any

import pytest

from osd.config.trainer import TrainerConfig
from osd.fleet.heartbeat import DistillerReport, EngineReport
from osd.fleet.spare import SpareCompute
from osd.records.status import TrainerStatus
from tests.kit.clock import Clock
from tests.kit.reports import engine_report


@pytest.fixture
def clock() -> Clock:
    return Clock(now_s=100.0)


@pytest.fixture
def spare(clock: Clock) -> SpareCompute:
    return SpareCompute(TrainerConfig(max_utilisation=0.5, max_serving_cost=0.1), clock)


def _distiller(training_s: float = 0.0, **fields: Any) -> DistillerReport:
    status = TrainerStatus(state="training", training_s=training_s)
    usual: dict[str, Any] = {"node": "n1", "device": "cpu", "wanted_share": 0.1, "is_paused": False, "status": status}
    return DistillerReport(**(usual | fields))


def _engine(name: str, node: str, busy: float, device: str = "cpu", **fields: Any) -> EngineReport:
    return engine_report(name, node=node, device=device, utilisation=busy, **fields)


def test_the_busiest_engine_on_the_same_device_counts(spare: SpareCompute) -> None:
    engines = [
        _engine("a", "n1", 0.3),
        _engine("b", "n1", 0.6),
        _engine("c", "n2", 0.9),
        _engine("d", "n1", 1.0, "gpu"),
    ]
    assert spare.take(_distiller(), engines) == 0.6
    assert [spare.share_for(engine) for engine in engines] == [0.0, 0.1, 0.0, 0.0]


def test_a_device_of_its_own_is_free_whatever_other_nodes_do(spare: SpareCompute) -> None:
    engines = [_engine("a", "n2", 1.0), _engine("b", "n1", 1.0, "gpu")]
    assert spare.take(_distiller(), engines) == 0.0
    assert spare.granted() == 0.0
    status = spare.status()
    assert status is not None and status.neighbours == ()


def test_while_its_device_is_unknown_it_may_be_any(spare: SpareCompute) -> None:
    assert spare.take(_distiller(device=""), [_engine("b", "n1", 0.9, "gpu")]) == 0.9


def test_nobody_leaves_more_than_the_configuration_allows(spare: SpareCompute) -> None:
    busy = _engine("a", "n1", 0.9)
    spare.take(_distiller(wanted_share=0.4), [busy])
    assert spare.share_for(busy) == 0.1


def test_a_distiller_that_died_slows_nobody(spare: SpareCompute, clock: Clock) -> None:
    busy = _engine("a", "n1", 0.9)
    spare.take(_distiller(), [busy])
    clock.now_s += 9.0
    assert spare.share_for(busy) == 0.1
    clock.now_s += 2.0
    assert spare.share_for(busy) == 0.0
    clock.now_s += 100.0
    assert spare.status() is None


def test_what_it_takes_and_costs_is_measured(spare: SpareCompute, clock: Clock) -> None:
    for second in range(11):
        engines = [_engine("a", "n1", 0.9, paused_s=0.05 * second), _engine("b", "n1", 0.7, paused_s=0.02 * second)]
        spare.take(_distiller(training_s=0.4 * second), engines)
        clock.now_s += 1.0
    status = spare.status()
    assert status is not None
    assert (status.neighbours, status.utilisation, status.share) == (("a", "b"), 0.9, 0.1)
    assert status.training == pytest.approx(0.4)
    assert status.serving_cost == pytest.approx(0.05)


def test_an_engine_that_came_within_the_minute_counts_from_then_on(spare: SpareCompute, clock: Clock) -> None:
    """After a restart of everything the distiller may report before the engine does."""
    spare.take(_distiller(), [])
    for second in range(5):
        clock.now_s += 1.0
        spare.take(_distiller(), [_engine("a", "n1", 0.9, paused_s=0.1 * second)])
    status = spare.status()
    assert status is not None and status.serving_cost == pytest.approx(0.1)


def test_restarts_do_not_spoil_the_measurement(spare: SpareCompute, clock: Clock) -> None:
    spare.take(_distiller(training_s=50.0), [_engine("a", "n1", 0.9, paused_s=7.0)])
    clock.now_s += 10.0
    spare.take(_distiller(training_s=1.0), [_engine("a", "n1", 0.9, paused_s=0.1, incarnation="second")])
    status = spare.status()
    assert status is not None and (status.training, status.serving_cost) == (0.0, 0.0)
