"""Three engines and a supervisor in Ray: one tries a version, and it reaches the others only if it is good."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.engine.engine import EngineActor
from actors.supervisor.supervisor import SupervisorActor
from osd.config.settings import Config, load_config
from osd.fleet.heartbeat import EngineReport
from osd.io.weight_store import FileWeightStore
from osd.records.query import Request, SamplingParams
from osd.records.status import FleetStatus, VersionsStatus
from tests.kit.tiny_engine import assemble_tiny, bad_weights, good_weights, tiny_store
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(280)]
_ENGINES = ("a", "b", "c")


class _Fleet:
    def __init__(self, root: Path) -> None:
        self.config = self._config_of(root, "a")
        self.store: FileWeightStore = tiny_store(self.config)
        self.publish(good_weights())
        self._numbers = count()
        self._root, self._name = root, f"supervisor-{uuid.uuid4().hex[:8]}"
        self.engines = {name: self.start_engine(name) for name in _ENGINES}
        ray.get([engine.ready.remote() for engine in self.engines.values()])
        self.supervisor = self.start_supervisor()

    @staticmethod
    def _config_of(root: Path, engine: str) -> Config:
        return load_config(
            flags={
                "state_dir": root,
                "engine": {"id": engine},
                "drafter": {"kind": "model"},
                "swap": {"poll_interval_s": 0.1, "min_rounds": 20, "watch_rounds": 100},
                "cluster": {"report_interval_s": 0.1},
            }
        )

    def start_engine(self, name: str) -> Any:
        config = self._config_of(self._root, name)
        return ray.remote(num_cpus=0)(EngineActor).remote(config, "", self._name, assemble=assemble_tiny)

    def start_supervisor(self) -> Any:
        return ray.remote(num_cpus=0)(SupervisorActor).options(name=self._name).remote({}, None, self.config)

    def publish(self, weights: dict[str, Any]) -> int:
        return self.store.publish(weights, kind="model", config={}, parent=None).number

    def serving(self) -> dict[str, int]:
        reports: list[EngineReport] = ray.get(self.supervisor.engines.remote())
        return {report.engine_id: report.drafter.version for report in reports}

    def status(self) -> VersionsStatus:
        status: FleetStatus = ray.get(self.supervisor.fleet_status.remote())
        return status.versions

    def serve(self, num_queries: int = 6) -> None:
        """Every engine answers some queries."""
        asked: list[tuple[Any, str]] = []
        for engine in self.engines.values():
            for _ in range(num_queries):
                name = f"q{next(self._numbers)}"
                params = SamplingParams(temperature=0.0, max_tokens=24)
                request = Request(request_id=name, prompt_ids=(len(asked) % 4, 1), params=params)
                ray.get(engine.submit.remote("test", request))
                asked.append((engine, name))
        wait_for(lambda: not any(map(_is_busy, self.engines.values())), "the answers")

    def serve_and_look(self) -> VersionsStatus:
        self.serve()
        return self.status()

    def kinds(self) -> list[str]:
        return [event.kind for event in ray.get(self.supervisor.events.remote(100))]


def _is_busy(engine: Any) -> bool:
    status = ray.get(engine.status.remote())
    return bool(status.running + status.waiting)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[_Fleet]:
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=1,
        object_store_memory=80 << 20,
        namespace="osd",
        log_to_driver=False,
    )
    try:
        yield _Fleet(tmp_path)
    finally:
        ray.shutdown()


def test_a_bad_version_is_rolled_back_and_a_good_one_reaches_all(fleet: _Fleet) -> None:
    wait_for(lambda: fleet.serving() == dict.fromkeys(_ENGINES, 1), "every engine to report")
    fleet.serve()
    bad = fleet.publish(bad_weights())
    wait_for(lambda: fleet.serving()["a"] == bad, "the canary to serve the bad version")
    wait_for(lambda: fleet.serve_and_look().roll_backs == 1, "the roll back")
    wait_for(lambda: fleet.serving() == dict.fromkeys(_ENGINES, 1), "the canary to be back")
    for name in ("b", "c"):
        versions = ray.get(fleet.engines[name].status.remote()).acceptance_by_version
        assert set(versions) == {1}, "the bad version reached an engine that is no canary"
    good = fleet.publish(good_weights())
    wait_for(lambda: fleet.serving() == {"a": good, "b": 1, "c": 1}, "the canary to serve the good version")
    ray.kill(fleet.supervisor)  # it learns where it was from the store and the engines
    fleet.supervisor = fleet.start_supervisor()
    wait_for(lambda: len(fleet.serving()) == 3, "every engine to report again")
    late = fleet.engines["d"] = fleet.start_engine("d")
    ray.get(late.ready.remote())
    assert ray.get(late.status.remote()).drafter_version == 1, "a late engine starts with what passed its trial"
    wait_for(lambda: fleet.serve_and_look().confirmed == good, "the good version to pass")
    wait_for(lambda: set(fleet.serving().values()) == {good}, "every engine to serve it")
    assert fleet.kinds() == ["confirm"]
