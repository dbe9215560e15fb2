"""The share of the last seconds that was busy."""

from __future__ import annotations

import math

import pytest

from osd.meters.utilisation import Utilisation
from tests.kit.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(now_s=100.0)
    monkeypatch.setattr("osd.meters.utilisation.time.monotonic", clock)
    return clock


def _spend(utilisation: Utilisation, clock: Clock, *, busy_s: float, idle_s: float, times: int = 1) -> None:
    for _ in range(times):
        utilisation.add_busy(clock.now_s, clock.now_s + busy_s)
        clock.now_s += busy_s + idle_s


def test_never_used_is_idle(clock: Clock) -> None:
    utilisation = Utilisation()
    clock.now_s += 5
    assert utilisation.share() == 0.0


def test_always_busy_is_one(clock: Clock) -> None:
    utilisation = Utilisation()
    _spend(utilisation, clock, busy_s=0.02, idle_s=0.0, times=1000)
    assert utilisation.share() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_steady_load_shows_its_share(clock: Clock, share: float) -> None:
    utilisation = Utilisation()
    _spend(utilisation, clock, busy_s=0.02 * share, idle_s=0.02 * (1 - share), times=1000)
    assert utilisation.share() == pytest.approx(share, abs=0.01)


def test_it_does_not_depend_on_how_work_is_cut_up(clock: Clock) -> None:
    whole, pieces = Utilisation(), Utilisation()
    whole.add_busy(clock.now_s, clock.now_s + 3.0)
    for number in range(30):
        pieces.add_busy(clock.now_s + number / 10, clock.now_s + (number + 1) / 10)
    clock.now_s += 4.0
    assert whole.share() == pytest.approx(pieces.share())


def test_idleness_is_forgotten_within_seconds(clock: Clock) -> None:
    utilisation = Utilisation()
    _spend(utilisation, clock, busy_s=20.0, idle_s=0.0)
    assert utilisation.share() > 0.999
    clock.now_s += 2.0
    assert utilisation.share() == pytest.approx(math.exp(-1), abs=1e-3)
    clock.now_s += 20.0
    assert utilisation.share() < 1e-3
