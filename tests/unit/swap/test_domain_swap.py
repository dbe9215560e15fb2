"""Drafters of domains: read when a query of theirs comes, replaced by name, gone when the base drafter serves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from osd.engine.loop import EngineLoop
from osd.io.domains.store import DomainStore
from osd.io.weight_store import FileWeightStore
from osd.models.target import Target
from osd.records.errors import OsdError
from osd.records.events import Event
from osd.records.query import QueryStats, Request, TokenDelta
from osd.records.version import WeightManifest
from osd.swap.hot_swap import HotSwap
from osd.swap.local_engine import LocalEngine
from tests.kit.backends import TORCH
from tests.kit.engine_kit import (
    Answers,
    made_up_costs,
    make_engine,
    make_target,
    model_drafter,
    plain_greedy,
    tiny_llama,
    weights_of,
)
from tests.kit.waiting import wait_for
from tests.unit.engine.cases import greedy


class Service:
    """An engine with a random base drafter, and stores by drafter's name; a domain's drafter guesses as the target."""

    def __init__(self, root: Path, max_domains: int = 1) -> None:
        self.model, self.root = tiny_llama(0), root
        self.events: list[Event] = []
        self.answers, self.num_asked = Answers(), 0
        self.read: list[str] = []
        self.problem: OsdError | None = None
        self._changed = threading.Condition()
        target = make_target(self.model, backend=TORCH)
        base = model_drafter(tiny_llama(99), target, backend=TORCH)
        engine = make_engine(target, base, max_domains=max_domains, on_event=self.events.append)
        self.loop = EngineLoop(engine, self._deliver)
        self.swap = HotSwap(self.store, LocalEngine(self.loop, self.make), retry_s=0.01, on_event=self.events.append)
        engine.policy.own.on_missing = lambda domain: self.swap.want(f"model.{domain}")
        self.loop.start()

    def close(self) -> None:
        self.swap.stop()
        self.loop.stop()

    def make(self, name: str, manifest: WeightManifest, target: Target) -> Any:
        return model_drafter(tiny_llama(98), target, version=0, name=name, backend=TORCH)

    def store(self, name: str) -> FileWeightStore:
        self.read.append(name)
        if self.problem is not None:
            raise self.problem
        return (DomainStore if "." in name else FileWeightStore)(self.root / name)

    def publish(self, name: str, state: Any = None) -> int:
        state = weights_of(self.model) if state is None else state
        number = self.store(name).publish(state, kind="model", config={}, parent=None).number
        self.read.clear()
        return number

    def ask(self, domain: str) -> QueryStats:
        """One query to its end; the answer is the target's own, whoever drafts."""
        name, prompt = f"q{self.num_asked}", (self.num_asked % 5, 1)
        self.num_asked += 1
        self.loop.submit(Request(request_id=name, prompt_ids=prompt, params=greedy(12), domain=domain))
        with self._changed:
            assert self._changed.wait_for(lambda: name in self.answers and self.answers[name].finish_reason, 60)
        assert self.answers[name].ids == plain_greedy(self.model, prompt, 12)
        stats = self.answers[name].stats
        assert stats is not None
        return stats

    def names(self) -> list[str]:
        return self.loop.call(lambda engine: [arm.name for arm in engine.policy.all_arms]).result(60)

    def messages(self) -> list[str]:
        return [event.message.split(" in ")[0] for event in self.events]

    def _deliver(self, deltas: list[TokenDelta]) -> None:
        with self._changed:
            self.answers.add(deltas)
            self._changed.notify_all()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    yield service
    service.close()


def test_a_drafter_is_read_when_a_query_of_its_domain_comes_and_not_before(service: Service) -> None:
    service.publish("model.sql")
    service.swap.order({"model.sql": 1})
    service.swap.obey()
    assert service.names() == ["model"] and service.read == []
    assert service.ask("other").accepted < 12 and service.read == []
    service.ask("sql")
    service.swap.obey()
    assert service.names() == ["model", "model.sql"] and service.read == ["model.sql"]
    stats = service.ask("sql")
    assert stats.accepted == stats.proposed > 0 and {one.name for one in stats.drafters} == {"model.sql"}
    assert {one.name for one in service.ask("other").drafters} == {"model"}
    service.swap.obey()
    assert service.read == ["model.sql"]


def test_its_thread_reads_it_while_queries_are_answered(service: Service) -> None:
    service.publish("model.sql")
    service.swap.order({"model.sql": 1})
    service.swap.start()
    service.ask("sql")
    wait_for(lambda: service.names() == ["model", "model.sql"], "the domain's drafter to be read")
    assert {one.name for one in service.ask("sql").drafters} == {"model.sql"}


def test_one_that_left_for_another_is_read_again_for_its_next_query(service: Service) -> None:
    for domain in ("sql", "code"):
        service.publish(f"model.{domain}")
    service.swap.order({"model.sql": 1, "model.code": 1})
    for domain in ("sql", "code", "sql"):
        service.ask(domain)
        service.swap.obey()
        assert service.names() == ["model", f"model.{domain}"]
    assert service.read == ["model.sql", "model.code", "model.sql"]
    service.swap.obey()
    assert service.names() == ["model", "model.sql"], "nobody asked for the other one again"


def test_versions_are_replaced_by_name_and_0_is_the_base_drafter(service: Service) -> None:
    service.publish("model")
    service.publish("model.sql", weights_of(tiny_llama(7)))
    service.swap.order({"model.sql": 1})
    service.ask("sql")
    service.swap.obey()
    service.publish("model.sql")
    service.swap.order({"model.sql": 2, "model": 1})
    service.swap.obey()
    stats = service.ask("sql")
    assert stats.accepted == stats.proposed > 0 and stats.drafter_version == 2
    service.swap.order({"model.sql": 0, "model": 1})
    service.swap.obey()
    service.ask("sql")
    service.swap.obey()
    assert service.names() == ["model"]
    assert service.messages() == [
        "drafter of domain 'sql', version 1 serves",
        "drafter of domain 'sql', version 1 -> 2",
        "drafter of domain 'sql', serves no more",
    ]


def test_an_unsound_version_is_refused_once_and_the_base_drafter_serves_on(service: Service) -> None:
    service.publish("model.sql", weights_of(tiny_llama(3, vocab_tokens=25)))
    service.swap.order({"model.sql": 1})
    for _ in range(3):
        assert {one.name for one in service.ask("sql").drafters} == {"model"}
        service.swap.obey()
    assert service.read == ["model.sql"] and service.names() == ["model"]
    [event] = service.events
    assert event.kind == "refuse" and event.message.startswith("domain 'sql': drafter version 1 refused: tensor ")
    assert "has shape" in service.swap.refused()["model.sql"][1]


def test_a_store_that_is_away_is_read_again(service: Service) -> None:
    service.publish("model.sql")
    service.problem = OsdError("cannot read weights in s3://a now")
    service.swap.order({"model.sql": 1})
    service.swap.start()
    service.ask("sql")
    wait_for(lambda: len(service.read) > 2, "the store to be tried again")
    service.problem = None
    wait_for(lambda: service.names() == ["model", "model.sql"], "the domain's drafter to be read")


def test_a_drafter_that_has_left_between_preparation_and_commit_is_made_again(service: Service) -> None:
    port = LocalEngine(service.loop, service.make)
    service.publish("model.sql")
    loaded = service.store("model.sql").load(1)
    for _ in range(2):
        port.prepare("model.sql", *loaded)
        service.loop.call(lambda engine: engine.remove_drafter("model.sql")).result(60)
        port.commit()
        assert port.serving("model.sql") == 1 and port.serving("model.code") is None
        stats = service.ask("sql")
        assert stats.accepted == stats.proposed > 0


def test_kernels_that_take_over_between_preparation_and_commit_are_used(service: Service) -> None:
    """A drafter that was made for the target and base drafter before would read another's rows."""
    made: list[Target] = []

    def make(name: str, manifest: WeightManifest, target: Target) -> Any:
        made.append(target)
        return service.make(name, manifest, target)

    port = LocalEngine(service.loop, make)
    service.publish("model.sql")
    port.prepare("model.sql", *service.store("model.sql").load(1))
    after = make_target(service.model, backend=TORCH)
    base = model_drafter(tiny_llama(99), after, backend=TORCH)
    service.loop.call(lambda engine: engine.take_over(after, [base], made_up_costs())).result(60)
    port.commit()
    assert made[-1] is after and len(made) == 2
    stats = service.ask("sql")
    assert stats.accepted == stats.proposed > 0
