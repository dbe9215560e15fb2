"""Hot swap end to end: a real engine in its loop, a real weight store, and the watcher between them."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from osd.assembly.assemble import EngineAssembly
from osd.config.settings import SwapConfig
from osd.engine.loop import EngineLoop
from osd.grammar.compiler import GrammarCompiler
from osd.io.weight_store import FileWeightStore
from osd.records.errors import OsdError, UnknownVersionError, WeightsRefusedError
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

_SWAP = SwapConfig(min_rounds=20, watch_rounds=200)
_QUERIES = 8
_MAX_TOKENS = 40


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(0)


class Service:
    """An engine in its loop with a store and a watcher; the target's own weights are drafter version 1."""

    def __init__(self, model: Any, root: Path, *, poll_interval_s: float = 60.0) -> None:
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
            swap=_SWAP,
            on_event=self._note,
        )
        self.loop = EngineLoop(engine, self._deliver)
        self.watcher = HotSwap(
            self.store, LocalEngine(self.loop, "model"), poll_interval_s=poll_interval_s, on_event=self._note
        )
        self.loop.start()

    def close(self) -> None:
        self.watcher.stop()
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

    def roll_backs(self) -> tuple[float, float]:
        """(all, of those by hand)"""
        counters = self.loop.status().counters
        return counters["roll_backs_total"], counters["manual_roll_backs_total"]

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


def test_a_new_version_is_swapped_in_once(service: Service) -> None:
    service.watcher.check_now()
    assert service.kinds() == []
    service.publish(service.good)
    service.watcher.check_now()
    service.watcher.check_now()
    assert service.serving() == 2
    assert service.kinds() == ["swap"]


def test_a_scrambled_version_is_rolled_back_and_acceptance_recovers(service: Service) -> None:
    good = service.serve()
    assert good["accepted"] > 0.95 * good["proposed"]
    service.publish(_scrambled())
    service.watcher.check_now()
    assert service.serving() == 2
    bad = service.serve()
    assert bad["accepted"] < 0.5 * bad["proposed"]
    assert service.serving() == 2
    service.watcher.check_now()
    assert service.serving() == 1
    assert service.kinds() == ["swap", "roll_back", "swap"]
    roll_back = service.events[1]
    assert "acceptance fell from 1.00 to 0." in roll_back.message
    assert roll_back.data == {"version": 2, "to": 1}
    latest = service.store.latest()
    assert latest is not None
    assert latest.number == 1
    assert "acceptance fell" in service.store.load(2)[0].rolled_back
    again = service.serve()
    assert again["accepted"] > 0.95 * again["proposed"]
    service.watcher.check_now()
    assert service.serving() == 1  # and there it stays
    assert service.roll_backs() == (1, 0)


def test_roll_backs_by_hand_are_counted_and_told_from_automatic_ones(service: Service) -> None:
    service.publish(service.good)
    service.publish(service.good)
    service.watcher.check_now()
    assert service.serving() == 3
    service.store.roll_back(to=1, reason="was better")  # as another process does: `osd drafter rollback`
    service.watcher.check_now()
    service.watcher.check_now()
    assert service.serving() == 1
    assert service.kinds() == ["swap", "roll_back", "swap"]
    assert service.events[1].message == "drafter version 3 -> 1, by hand: was better"
    assert service.events[1].data == {"version": 3, "to": 1}
    assert service.roll_backs() == (1, 1)


def test_an_operators_roll_back_is_served_counted_and_reported_at_once(model: Any, tmp_path: Path) -> None:
    service = Service(model, tmp_path / "weights")  # which looks at its store once a minute
    try:
        service.publish(service.good)
        service.watcher.start()
        service.wait_for_event("swap")
        codec = service.loop.call(lambda engine: engine.codec).result(60)
        assembly = EngineAssembly(service.loop, service.store, codec, GrammarCompiler(codec, ()), service.watcher, None)
        assert assembly.roll_back(1, "was better").number == 1
        assert service.wait_for_event("roll_back").data == {"version": 2, "to": 1}
        with pytest.raises(UnknownVersionError, match="there is no drafter version 9"):
            assembly.roll_back(9, "mistyped")
    finally:
        service.close()
    assert service.kinds()[:2] == ["swap", "roll_back"]


def test_an_operator_who_asks_for_a_refused_version_is_told_why(service: Service) -> None:
    """It is the store's latest, but not what serves."""
    service.publish(_wrong_shape(service))
    service.watcher.check_now()
    codec = service.loop.call(lambda engine: engine.codec).result(60)
    assembly = EngineAssembly(service.loop, service.store, codec, GrammarCompiler(codec, ()), service.watcher, None)
    with pytest.raises(WeightsRefusedError, match="the engine refused version 2: tensor .* has shape"):
        assembly.roll_back(2, "try again")
    with pytest.raises(UnknownVersionError):
        assembly.roll_back(9, "mistyped")
    assert service.serving() == 1


def test_a_version_that_was_rolled_back_before_it_was_swapped_in_counts_too(service: Service) -> None:
    service.publish(service.good)
    service.store.roll_back(to=1, reason="too early")
    service.watcher.wake()
    service.watcher.check_now()
    assert (service.serving(), service.kinds(), service.roll_backs()) == (1, ["roll_back"], (1, 1))


def test_a_roll_back_that_the_disk_refused_is_tried_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    service.serve()
    service.publish(_scrambled())
    service.watcher.check_now()
    service.serve()
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(service.store, "roll_back", partial(_refuse, "the disk is full"))
        service.watcher.check_now()
    assert service.serving() == 2
    service.watcher.check_now()
    assert service.serving() == 1
    assert service.kinds() == ["swap", "roll_back", "swap"]


def _refuse(message: str, **_: object) -> None:
    raise OSError(message)


def test_a_version_published_right_after_a_roll_back_is_judged_as_well(service: Service) -> None:
    service.serve()
    for number in (2, 3):
        service.publish(_scrambled(number))
        service.watcher.check_now()
        assert service.serving() == number
        service.serve()
        service.watcher.check_now()
        assert service.serving() == 1
    assert service.kinds() == ["swap", "roll_back", "swap"] * 2


def test_the_watcher_does_all_that_by_itself(model: Any, tmp_path: Path) -> None:
    service = Service(model, tmp_path / "weights", poll_interval_s=0.01)
    try:
        service.watcher.start()
        service.serve()
        service.publish(_scrambled())
        service.wait_for_event("swap")
        service.serve()
        service.wait_for_event("roll_back")
    finally:
        service.close()
    assert service.kinds()[:2] == ["swap", "roll_back"]


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
        service.watcher.check_now()
    assert service.kinds() == ["refuse"]
    assert reason in service.events[0].message
    assert service.events[0].data == {"version": 2}
    assert service.serving() == 1
    served = service.serve()
    assert served["accepted"] > 0.95 * served["proposed"]
    service.publish(service.good)
    service.watcher.check_now()
    assert service.serving() == 3


def test_a_store_that_is_away_is_told_of_once_and_looked_at_again(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(model, tmp_path / "weights", poll_interval_s=0.01)
    service.publish(service.good)
    latest, num_looks = service.store.latest, 0

    def away() -> WeightManifest | None:
        nonlocal num_looks
        num_looks += 1
        if num_looks <= 5:
            raise OsdError("cannot read weights in s3://a now")
        return latest()

    monkeypatch.setattr(service.store, "latest", away)
    try:
        service.watcher.start()
        service.wait_for_event("swap")
        assert service.serving() == 2
    finally:
        service.close()
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "cannot look for new drafter weights: cannot read weights in s3://a now"
    ]


def test_a_refused_version_on_top_does_not_keep_a_worse_one_serving(service: Service) -> None:
    service.serve()
    service.publish(_scrambled())
    service.watcher.check_now()
    service.publish(_wrong_shape(service))
    service.watcher.check_now()
    assert service.serving() == 2
    service.serve()
    service.watcher.check_now()
    assert service.serving() == 1
    assert service.kinds() == ["swap", "refuse", "roll_back", "swap"]
