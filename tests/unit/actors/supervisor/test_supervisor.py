"""The supervisor's actor, without Ray: it notices that a process was started anew."""

from __future__ import annotations

import os

from actors.supervisor.supervisor import SupervisorActor
from tests.kit.named_actors import NamedActors, ReportingEngine
from tests.kit.waiting import wait_for


def test_the_supervisor_notices_restarts() -> None:
    engine = ReportingEngine(SupervisorActor({}), pid=os.getpid())
    others = NamedActors({"engine": engine, "supervisor": engine.supervisor})
    watched = {"engine": "engine", "distiller": "distiller"}
    supervisor = SupervisorActor(watched, ask=others.ask, ping_interval_s=0.001)
    wait_for(lambda: "engine" in supervisor.processes(), "the first ping to be answered")
    del others.named["engine"]
    wait_for(lambda: others.num_misses["engine"], "a ping that nobody answers")
    engine.pid = os.getppid()
    others.named["engine"] = engine
    wait_for(lambda: supervisor.restarts()["engine"], "the restart to be noticed")
    supervisor.close()
    assert supervisor.restarts() == {"engine": 1, "distiller": 0}
    [event] = supervisor.events(10)
    assert event.kind == "restart" and f"{os.getpid()} -> {os.getppid()}" in event.message
    assert "supervisor" in supervisor.processes()
