"""Drift by domain: what counts as one, how long it lasts, and what is told of it."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import msgspec

from osd.records.outcome import Outcome, Round
from osd.records.status import ALL_TRAFFIC
from tests.kit.outcome_samples import sample_outcome
from trainer.drift.drift import DriftMonitor

_ROUNDS = 20


def _outcome(accepted: Sequence[bool], domain: str, name: str = "feature", version: int = 1) -> Outcome:
    rounds = tuple(Round(version if name.startswith("feature") else 0, 4, int(one), name) for one in accepted)
    return msgspec.structs.replace(sample_outcome(), domain=domain, rounds=rounds)


class _Traffic:
    """Queries whose rounds are accepted by chance."""

    def __init__(self, seed: int = 0) -> None:
        self.monitor, self._chance = DriftMonitor(), random.Random(seed)
        self.found: list[str] = []

    def send(self, rate: float, num: int, domain: str = "a", name: str = "feature", version: int = 1) -> int:
        """Returns how many queries it took to a drift; 0 if there was none."""
        took = 0
        for number in range(1, num + 1):
            accepted = [self._chance.random() < rate for _ in range(_ROUNDS)]
            for drifted in self.monitor.add(_outcome(accepted, domain, name, version)):
                self.found.append(f"{drifted.domain} {drifted.direction}")
                took = took or number
        return took

    def state(self, domain: str = ALL_TRAFFIC) -> str:
        return self.monitor.status()[domain].state


def test_a_domain_that_falls_drifts_and_another_does_not() -> None:
    traffic = _Traffic()
    for _ in range(150):
        traffic.send(0.5, 1, "a")
        traffic.send(0.5, 1, "b")
    assert not traffic.found and traffic.monitor.status().keys() == {"a", "b", "*"}
    for _ in range(40):
        traffic.send(0.25, 1, "a")
        traffic.send(0.5, 1, "b")
    assert "a down" in traffic.found and not {"b down", "b up"} & set(traffic.found)
    assert traffic.state("a") == "drift" and traffic.state("b") == "stable"
    window = traffic.monitor.status()["a"]
    assert 0.45 < window.before < 0.55 and 0.15 < window.recent < 0.35


def test_a_shift_from_one_domain_to_another_is_one_of_all_traffic() -> None:
    traffic = _Traffic()
    traffic.send(0.53, 200, "gsm8k")
    assert 0 < traffic.send(0.37, 60, "spider") <= 60
    assert traffic.found == ["* down"]
    assert traffic.state("gsm8k") == traffic.state("spider") == "stable"


def test_a_published_version_ends_it() -> None:
    traffic = _Traffic()
    traffic.send(0.6, 100)
    traffic.send(0.3, 60)
    assert traffic.state() == "drift"
    traffic.monitor.passed_gate()
    assert {one.state for one in traffic.monitor.status().values()} == {"stable"}
    assert traffic.monitor.status()["*"].queries == 0


def test_drift_that_nothing_ends_becomes_normal() -> None:
    traffic = _Traffic()
    traffic.send(0.6, 100)
    traffic.send(0.3, 60)
    traffic.send(0.3, 600)
    assert traffic.state() == "stable" and set(traffic.found) == {"a down", "* down"} and len(traffic.found) == 2


def test_a_rise_is_other_traffic_unless_a_new_version_brought_it() -> None:
    traffic = _Traffic()
    traffic.send(0.4, 150)
    assert 0 < traffic.send(0.7, 60) <= 60
    assert set(traffic.found) == {"a up", "* up"}
    traffic = _Traffic()
    traffic.send(0.4, 150)
    traffic.send(0.7, 200, version=2)
    assert not traffic.found


def test_a_domains_own_drafter_is_the_learned_one_of_the_domain() -> None:
    """Its versions are counted for themselves: version 2 of either drafter is another than that of the other."""
    traffic = _Traffic()
    traffic.send(0.4, 150, "a", "feature.a", version=2)
    traffic.send(0.7, 60, "a", "feature.a", version=2)
    assert set(traffic.found) == {"a up"}, "all traffic is judged by the base drafter"
    traffic = _Traffic()
    traffic.send(0.4, 150, "a", "feature", version=2)
    traffic.send(0.7, 60, "a", "feature.a", version=2)
    assert not traffic.found, "its own drafter brought it"


def test_a_fall_counts_whatever_version_it_comes_with() -> None:
    traffic = _Traffic()
    traffic.send(0.6, 150)
    assert 0 < traffic.send(0.3, 60, version=2) <= 60


def test_answers_that_the_lookup_learnt_are_no_drift() -> None:
    """Its rounds are accepted ever more often."""
    traffic = _Traffic()
    traffic.send(0.4, 150)
    traffic.send(0.9, 200, name="suffix")
    assert not traffic.found


def test_queries_without_proposals_say_nothing() -> None:
    traffic = _Traffic()
    traffic.send(0.6, 150)
    for _ in range(100):
        traffic.monitor.add(_outcome([False] * 2, "a"))
        traffic.monitor.add(msgspec.structs.replace(_outcome([], "a"), rounds=(Round(0, 0, 0),) * 20))
    assert not traffic.found and traffic.state() == "stable"


def test_domains_are_bounded() -> None:
    monitor = DriftMonitor()
    for number in range(1000):
        monitor.add(_outcome([True] * 5, f"d{number}"))
    assert len(monitor.status()) == 64 and "*" in monitor.status() and "d999" in monitor.status()


def test_a_restored_monitor_knows_what_is_normal_and_what_drifts() -> None:
    traffic = _Traffic()
    traffic.send(0.6, 100, "a")
    traffic.send(0.5, 100, "b", "feature.b", version=3)
    traffic.send(0.3, 60, "a")
    before = traffic.monitor.status()
    assert before["a"].state == "drift"
    traffic.monitor, saved = DriftMonitor(), json.loads(json.dumps(traffic.monitor.state()))
    traffic.monitor.restore(saved)
    assert traffic.monitor.status() == before
    assert json.loads(json.dumps(traffic.monitor.state())) == saved
    traffic.found.clear()
    assert 0 < traffic.send(0.25, 60, "b", "feature.b", version=3) <= 60
    assert "b down" in traffic.found
