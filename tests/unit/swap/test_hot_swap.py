"""Hot swap end to end: a real engine in its loop, a real weight store, and the thread that swaps between them."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from osd.engine.loop import EngineLoop
from osd.io.weight_store import FileWeightStore
from osd.records.errors import OsdError
from osd.records.events import Event, EventKind
from osd.records.query import Request, SamplingParams, TokenDelta
from osd.records.version import WeightManifest
from osd.swap.hot_swap import HotSwap
from osd.swap.local_engine import LocalEngine
from tests.kit.engine_kit import (
    VOCAB_TOKENS,
    Answers,
    feature_drafter,
    feature_state,
    make_engine,
    make_target,
    model_drafter,
    plain_greedy,
    tiny_llama,
    weights_of,
)

_QUERIES = 8
_MAX_TOKENS = 40


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(0)


class Service:
    """An engine in its loop with a store and a hot swap; the target's own weights are drafter version 1."""

    def __init__(self, model: Any, root: Path, *, retry_s: float = 60.0) -> None:
        self.model, self.root = model, root
        self.store = FileWeightStore(root)
        self.good = weights_of(model)
        self.publish(self.good)
        target = make_target(copy.deepcopy(model))
        self.events: list[Event] = []
        self.answers = Answers()
        self._changed = threading.Condition()
        self._served = 0
        engine = make_engine(
            target,
            model_drafter(copy.deepcopy(model), target),
            fixed_length=3,
            on_event=self._note,
        )
        self.loop = EngineLoop(engine, self._deliver)
        self.swap = HotSwap(lambda name: self.store, LocalEngine(self.loop), retry_s=retry_s, on_event=self._note)
        self.loop.start()

    def close(self) -> None:
        self.swap.stop()
        self.loop.stop()

    def publish(self, state: dict[str, Tensor], *, kind: str = "model") -> WeightManifest:
        latest = self.store.latest()
        return self.store.publish(state, kind=kind, config={}, parent=latest.number if latest else None)

    def serve(self) -> dict[str, int]:
        """Some queries, to the end; the answers are the target's own, whatever the drafter. What was accepted."""
        before = self._counts()
        names = [f"q{self._served + number}" for number in range(_QUERIES)]
        for number, name in enumerate(names):
            self.loop.submit(
                Request(
                    request_id=name,
                    prompt_ids=(number % 4, 1),
                    params=SamplingParams(temperature=0.0, max_tokens=_MAX_TOKENS),
                )
            )
        self._served += _QUERIES
        with self._changed:
            assert self._changed.wait_for(
                lambda: all(name in self.answers and self.answers[name].finish_reason for name in names), 60
            )
        for number, name in enumerate(names):
            assert self.answers[name].ids == plain_greedy(self.model, (number % 4, 1), _MAX_TOKENS)
        after = self._counts()
        return {name: after[name] - before[name] for name in after}

    def wait_for_event(self, kind: EventKind) -> Event:
        with self._changed:
            assert self._changed.wait_for(lambda: any(event.kind == kind for event in self.events), 60)
        return next(event for event in self.events if event.kind == kind)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def serving(self) -> int:
        return self.loop.status().drafter_version

    def _counts(self) -> dict[str, int]:
        counters = self.loop.status().counters
        return {name: int(counters[f"{name}_total"]) for name in ("proposed", "accepted")}

    def _deliver(self, deltas: list[TokenDelta]) -> None:
        with self._changed:
            self.answers.add(deltas)
            self._changed.notify_all()

    def _note(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()


@pytest.fixture
def service(model: Any, tmp_path: Path) -> Iterator[Service]:
    service = Service(model, tmp_path / "weights")
    yield service
    service.close()


def _scrambled(seed: int = 7) -> dict[str, Tensor]:
    """Well-formed, finite, of the right shapes, and nonsense."""
    return weights_of(tiny_llama(1000 + seed))


def _obey(service: Service, number: int) -> None:
    service.swap.order({"model": number})
    service.swap.obey()


def test_an_ordered_version_is_swapped_in_once(service: Service) -> None:
    _obey(service, 1)
    assert service.kinds() == []
    service.publish(service.good)
    service.swap.obey()
    assert service.serving() == 1  # published is not ordered
    _obey(service, 2)
    _obey(service, 2)
    assert service.serving() == 2
    assert service.kinds() == ["swap"]


def test_answers_are_the_targets_before_and_after_a_nonsensical_version_and_an_order_back(service: Service) -> None:
    good = service.serve()
    assert good["accepted"] > 0.95 * good["proposed"]
    service.publish(_scrambled())
    _obey(service, 2)
    bad = service.serve()
    assert bad["accepted"] < 0.5 * bad["proposed"]
    _obey(service, 1)
    again = service.serve()
    assert again["accepted"] > 0.95 * again["proposed"]
    assert service.kinds() == ["swap", "swap"]


def test_its_thread_obeys_by_itself(service: Service) -> None:
    service.swap.start()
    service.publish(service.good)
    service.swap.order({"model": 2})
    service.wait_for_event("swap")
    assert service.serving() == 2


def _tear(service: Service, number: int) -> None:
    path = service.root / f"v{number:06d}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _spoil(service: Service, number: int) -> None:
    """NaN under a digest that fits."""
    path, manifest = service.root / f"v{number:06d}.safetensors", service.root / f"v{number:06d}.json"
    state = {name: tensor.clone() for name, tensor in service.good.items()}
    state["lm_head.weight"][3, 4] = float("nan")
    save_file(state, path)
    digest = sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "digest": digest}))


def _foreign(service: Service) -> dict[str, Tensor]:
    config = feature_drafter(make_target(copy.deepcopy(service.model))).config
    return feature_state(config, 0)


def _wrong_shape(service: Service) -> dict[str, Tensor]:
    return weights_of(tiny_llama(3, vocab_tokens=VOCAB_TOKENS + 1))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("torn", "digest"), ("nan", "NaN or infinity"), ("foreign", "another kind"), ("shape", "has shape")],
)
def test_an_unsound_version_is_refused_once_and_the_old_one_serves_on(
    service: Service, fault: str, reason: str
) -> None:
    if fault == "foreign":
        number = service.publish(_foreign(service)).number
    elif fault == "shape":
        number = service.publish(_wrong_shape(service)).number
    else:
        number = service.publish(service.good).number
        (_tear if fault == "torn" else _spoil)(service, number)
    for _ in range(3):
        _obey(service, number)
    assert service.kinds() == ["refuse"]
    assert reason in service.events[0].message
    assert service.events[0].data == {"version": 2}
    assert reason in service.swap.refused()["model"][2]
    assert service.serving() == 1
    served = service.serve()
    assert served["accepted"] > 0.95 * served["proposed"]
    service.publish(service.good)
    _obey(service, 3)
    assert service.serving() == 3


def test_a_store_that_is_away_is_told_of_once_and_read_again(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(model, tmp_path / "weights", retry_s=0.01)
    service.publish(service.good)
    load, num_loads = service.store.load, 0

    def away(number: int) -> tuple[WeightManifest, dict[str, Tensor]]:
        nonlocal num_loads
        num_loads += 1
        if num_loads <= 5:
            raise OsdError("cannot read weights in s3://a now")
        return load(number)

    monkeypatch.setattr(service.store, "load", away)
    try:
        service.swap.start()
        service.swap.order({"model": 2})
        service.wait_for_event("swap")
        assert service.serving() == 2
    finally:
        service.close()
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "cannot read new drafter weights: cannot read weights in s3://a now"
    ]
