"""A distiller that starts on another node, with nothing on its disk, goes on where the former one was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.calls.names import ActorNames
from actors.distiller.distiller import DistillerActor
from actors.supervisor.supervisor import SupervisorActor
from osd.config.settings import Config, load_config
from osd.io.outcome_stream import RedisOutcomeStream
from osd.io.url_folder import open_folder
from osd.io.weight_store import FileWeightStore
from osd.ports.lease import TrainingLease
from osd.records.events import Event
from tests.contract.conftest import RedisServer
from tests.kit.trainer_fakes import feature_student, learnable_outcome, trainer_config
from tests.kit.waiting import wait_for
from trainer.loop.loop import Trainer

pytestmark = [pytest.mark.redis, pytest.mark.slow]
_NUM_OUTCOMES = 30


def _stream(url: str) -> RedisOutcomeStream:
    return RedisOutcomeStream(url, "outcomes", max_entries=1000, max_bytes=64 << 20)


def _build(
    config: Config,
    redis_url: str,
    *,
    may_train: Callable[[], bool],
    lease: TrainingLease | None,
    on_event: Callable[[Event], None],
    stop: threading.Event,
) -> Trainer:
    """A small trainer whose versions and checkpoint are in the store; it saves only when it is told to."""
    return Trainer(
        trainer_config(),
        feature_student(),
        _stream(redis_url),
        FileWeightStore(open_folder(config, "weights")),
        open_folder(config, "checkpoints"),
        target_id="tiny",
        lease=lease,
        on_event=on_event,
        checkpoint_every_s=3600.0,
    )


class _Service:
    """A store and a stream that all nodes reach, and a supervisor."""

    def __init__(self, redis_url: str, root: Path) -> None:
        self.redis_url, self.root = redis_url, root
        self.store = FileWeightStore(open_folder(self.config_of("any"), "weights"))
        first = feature_student()
        self.store.publish(first.state(), kind=first.kind, config=first.config, parent=None)
        self.supervisor = SupervisorActor({})
        self.distillers: list[DistillerActor] = []

    def config_of(self, node: str) -> Config:
        return load_config(
            flags={
                "state_dir": self.root / node,
                "store": {"url": str(self.root / "shared")},
                "outcomes": {"stream": "outcomes"},
                "trainer": {"nice": 0},
            }
        )

    def start(self, node: str) -> DistillerActor:
        names = ActorNames("engine", "distiller", "supervisor")
        options: dict[str, Any] = {"ask": self._ask, "build": _build, "ask_interval_s": 0.01, "retry_s": 0.01}
        self.distillers.append(DistillerActor(self.config_of(node), self.redis_url, names, **options))
        return self.distillers[-1]

    def _ask(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        return getattr(self.supervisor, method)(*args)

    def close(self) -> None:
        for distiller in self.distillers:
            distiller.close()
        self.supervisor.close()


@pytest.fixture
def service(redis_server: RedisServer, tmp_path: Path) -> Iterator[_Service]:
    service = _Service(redis_server.url, tmp_path)
    yield service
    service.close()


def test_the_second_goes_on_from_the_checkpoint_and_the_unread_and_the_first_stands_by(
    service: _Service, redis_server: RedisServer
) -> None:
    stream = _stream(redis_server.url)
    for number in range(_NUM_OUTCOMES):
        stream.put(learnable_outcome(number))
    first = service.start("node 1")
    wait_for(lambda: first.status().gate, "the first one to train and to come to the gate, where it saves")
    service.supervisor.set_training_paused(True)
    wait_for(lambda: first.status().state == "paused", "it to be paused, so that it saves nothing more")
    for number in range(_NUM_OUTCOMES, 2 * _NUM_OUTCOMES):
        stream.put(learnable_outcome(number))
    second = service.start("node 2")
    wait_for(lambda: "another distiller" in second.status().message, "the second one to wait")
    wait_for(lambda: _num_records(first) == 2 * _NUM_OUTCOMES, "the first one to read what no checkpoint has")
    assert second.status().steps == 0

    client, holder = redis_server.client, redis_server.client.get("outcomes:distiller")

    def is_taken() -> bool:
        """As if the first one were cut off: it runs out for it until the second one has it."""
        if (found := client.get("outcomes:distiller")) == holder:
            client.delete("outcomes:distiller")
        return found not in (None, holder)

    wait_for(is_taken, "the second one to take the lease")
    wait_for(lambda: second.status().steps > 0, "the second one to take over")
    wait_for(lambda: "another distiller" in first.status().message, "the first one to stand by")
    assert second.status().steps % 10 == 0, "it goes on from a checkpoint, which is made at the gate every ten steps"
    wait_for(lambda: _num_records(second) == 2 * _NUM_OUTCOMES, "it to read again what the first one had not saved")
    pending = redis_server.client.xpending("outcomes", "osd-trainer")
    assert {consumer["name"] for consumer in pending["consumers"]} <= {b"trainer"}
    assert not any(service.root.joinpath(node).exists() for node in ("node 1", "node 2"))
    stream.close()


def _num_records(distiller: DistillerActor) -> int:
    status = distiller.status()
    return status.replay_records + status.held_out_records
