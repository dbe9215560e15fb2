"""What open admin pages cost is told pair by pair, and the monitor's share of the processors by process."""

from __future__ import annotations

import pytest

from benchmarks.monitor_live import summary

_OF = ", % of processors"


def block(tokens_per_s: float, supervisor: float, server: float) -> dict[str, float]:
    return {"tokens/s": tokens_per_s, f"engine{_OF}": 90.0, f"server{_OF}": server, f"supervisor{_OF}": supervisor}


def test_a_machine_that_slows_down_is_not_taken_for_the_cost_of_pages() -> None:
    alone = [block(100.0, 0.2, 2.0), block(80.0, 0.2, 2.0), block(60.0, 0.3, 2.0)]
    watched = [block(99.0, 0.5, 2.1), block(80.8, 0.5, 2.1), block(59.4, 0.5, 2.1)]
    found = summary(alone, watched)
    assert found["tokens/s lost by open pages, %, median of pairs"] == pytest.approx(1.0)
    assert found["least of the pairs, %"] == pytest.approx(-1.0)
    assert found["most of the pairs, %"] == pytest.approx(1.0)
    assert found["nobody looks: tokens/s"] == 80.0


def test_the_monitors_share_is_the_supervisor_and_what_pages_add_elsewhere_but_in_the_engine() -> None:
    found = summary([block(100.0, 0.2, 2.0)], [{**block(100.0, 0.5, 2.25), f"engine{_OF}": 89.0}])
    assert found[f"monitor alone{_OF}"] == pytest.approx(0.2)
    assert found[f"monitor with open pages{_OF}"] == pytest.approx(0.75)
