"""What the supervisor notices in engines' reports, beside what it decides."""

from __future__ import annotations

import time

from actors.supervisor.fleet import Fleet
from osd.fleet.heartbeat import EngineOrders
from osd.records.events import Event
from tests.kit.reports import engine_report


def test_an_engine_on_a_node_whose_clock_is_wrong_becomes_one_event() -> None:
    events: list[Event] = []
    fleet = Fleet(None, "", "", events.append)
    for _ in range(10):
        fleet.take(engine_report("right", at_s=time.time()), EngineOrders(session=""))
        fleet.take(engine_report("wrong", at_s=time.time() + 90.0), EngineOrders(session=""))
    fleet.close()
    (event,) = events
    assert event.kind == "error" and abs(event.at_s - time.time()) < 60
    assert event.message.startswith("the clock of engine wrong's node is 90 s ahead of the supervisor's")
    assert event.message.endswith("synchronise the nodes' clocks (NTP)")
