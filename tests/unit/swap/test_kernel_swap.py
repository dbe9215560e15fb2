"""Compiled kernels take over from torch's operations while queries are answered, and no answer shows it."""

from __future__ import annotations

import copy
import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from osd.assembly.kernels import load_backend
from osd.drafters.model import ModelDrafter
from osd.engine.engine import Engine
from osd.engine.loop import EngineLoop
from osd.io.weight_store import FileWeightStore
from osd.kernels.backend import Backend
from osd.kernels.cpu import kernels as door
from osd.kernels.cpu.backend.decoder import CpuDecoder
from osd.kernels.cpu.backend.layers import CompiledLayers
from osd.kernels.cpu.compiling.building import Build
from osd.kernels.cpu.compiling.signatures import KernelSet
from osd.kernels.reference.llama import Llama
from osd.machine.memory import exclude_from_gc
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.records.events import Event
from osd.records.query import Request, TokenDelta
from osd.swap.hot_swap import HotSwap
from osd.swap.kernel_swap import KernelSwap
from osd.swap.local_engine import LocalEngine
from tests.kit.backends import TORCH, Undecoded
from tests.kit.engine_kit import (
    Answers,
    feature_drafter,
    made_up_costs,
    make_engine,
    make_target,
    model_drafter,
    perturbed,
    run,
    tiny_llama,
    weights_of,
)
from tests.kit.fake_build import FakeBuild
from tests.kit.waiting import wait_for
from tests.unit.engine.cases import greedy, plain, sampled

pytestmark = pytest.mark.skipif(door.kernels() is None, reason="numba is not installed")

_THESE = KernelSet(torch.float32, is_threaded=False)
_LONG = tuple(number % 23 for number in range(40))
MakeDrafter = Callable[[Any, Target], Drafter | None]
_DRAFTERS: dict[str, MakeDrafter] = {
    "none": lambda model, target: None,
    "feature": lambda model, target: feature_drafter(target),
    "model": lambda model, target: model_drafter(perturbed(model, 0.02), target),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """An engine's process leaves what it has loaded out of collections; this one goes on."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(0)


def _queries() -> list[Request]:
    """Rows of unlike length that wait, are read in several chunks and decode side by side, greedy and sampled."""
    prompts = [(3, 1, 4), _LONG, (5,), _LONG[:20], (9, 9, 9, 9)]
    queries = [
        Request(request_id=f"g{number}", prompt_ids=prompt, params=greedy(14 + number))
        for number, prompt in enumerate(prompts)
    ]
    return [*queries[:2], sampled("s", seed=5, max_tokens=12), *queries[2:]]


@pytest.mark.parametrize("make", list(_DRAFTERS))
@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5, 8, 13, 21])
def test_answers_go_on_where_they_are(model: Any, make: str, num_steps: int) -> None:
    torch_target = make_target(model, backend=TORCH)
    engine = make_engine(torch_target, _DRAFTERS[make](model, torch_target), chunk_tokens=16)
    run(engine, [Request(request_id="before", prompt_ids=(*_LONG[:20], 1), params=greedy(6))])
    answers, queries = Answers(), _queries()
    for query in queries:
        engine.submit(query)
    for _ in range(num_steps):
        answers.add(engine.step())
    target = make_target(model, backend=load_backend(_THESE))
    assert isinstance(target.lm.decoder, CpuDecoder)
    drafter = _DRAFTERS[make](model, target)
    engine.take_over(target, [drafter] if drafter else [], made_up_costs(len(engine.policy.arms)))
    assert engine.target is target
    run(engine, [Request(request_id="after", prompt_ids=(*_LONG[:20], 2), params=greedy(6))], answers)
    for query in queries:
        if query.params.is_greedy:
            assert answers[query.request_id].ids == plain(model, query), query.request_id
    stats = answers["after"].stats
    assert stats is not None
    assert stats.reused_tokens == 20  # what was read before is still known, and right
    after = Request(request_id="after", prompt_ids=(*_LONG[:20], 2), params=greedy(6))
    assert answers["after"].ids == plain(model, after)
    assert len(answers["s"].ids) == 12


def test_a_drafter_proposes_as_before(model: Any) -> None:
    """What it has read is read by its successor: the target's own weights are still always right."""
    torch_target = make_target(model, backend=TORCH)
    engine = make_engine(torch_target, model_drafter(copy.deepcopy(model), torch_target))
    query = Request(request_id="g", prompt_ids=_LONG, params=greedy(16))
    engine.submit(query)
    answers = Answers()
    for _ in range(3):
        answers.add(engine.step())
    target = make_target(model, backend=load_backend(_THESE))
    engine.take_over(target, [model_drafter(copy.deepcopy(model), target)], made_up_costs())
    run(engine, answers=answers)
    stats = answers["g"].stats
    assert answers["g"].ids == plain(model, query)
    assert stats is not None
    assert stats.accepted == stats.proposed


def load_these() -> Backend:
    return load_backend(_THESE)


class Service:
    """An engine of torch's operations in its loop, with what it said."""

    def __init__(
        self, model: Any, build: Any, *, backend: Backend = TORCH, kernels: Callable[[], Backend] = load_these
    ) -> None:
        self._kernels = kernels
        self.model, self.events, self.progress, self.answers = model, list[Event](), list[str](), Answers()
        self._changed = threading.Condition()
        self.before_remake: Callable[[], None] = lambda: None
        target = make_target(model, backend=backend)
        engine = make_engine(target, model_drafter(copy.deepcopy(model), target, version=0), on_event=self._note)
        self.loop = EngineLoop(engine, self._deliver)
        self.kernel_swap = KernelSwap(
            build, self.loop, self._remake, on_event=self._note, on_progress=self.progress.append
        )
        self.loop.start()

    def close(self) -> None:
        self.kernel_swap.stop()
        self.loop.stop()

    def ask(self, name: str, max_tokens: int = 20) -> Request:
        query = Request(request_id=name, prompt_ids=(len(name), 1), params=greedy(max_tokens))
        self.loop.submit(query)
        return query

    def answer(self, query: Request) -> list[int]:
        def is_answered() -> bool:
            return query.request_id in self.answers and self.answers[query.request_id].finish_reason is not None

        with self._changed:
            assert self._changed.wait_for(is_answered, 60)
        return self.answers[query.request_id].ids

    def wait_for_event(self) -> Event:
        with self._changed:
            assert self._changed.wait_for(lambda: bool(self.events), 120)
        return self.events[0]

    def engine(self) -> Engine:
        return self.loop.call(lambda engine: engine).result(60)

    def _remake(self, target: Target, drafters: Sequence[Drafter]) -> tuple[Target, list[Drafter]]:
        self.before_remake()
        [drafter] = drafters
        assert isinstance(drafter, ModelDrafter)
        backend = self._kernels()
        other = make_target(self.model, backend=backend) if target.lm.is_fused else target
        made = model_drafter(copy.deepcopy(self.model), other, backend=backend)
        made.prepare(drafter.state(), drafter.id.version)()
        return other, [made]

    def _deliver(self, deltas: list[TokenDelta]) -> None:
        with self._changed:
            self.answers.add(deltas)
            self._changed.notify_all()

    def _note(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()


@pytest.fixture
def build() -> Iterator[Build]:
    build = Build(_THESE)
    yield build
    build.stop()


@pytest.fixture
def service(model: Any) -> Iterator[Service]:
    """Its kernels are taken for compiled: what none has compiled, the first call compiles."""
    service = Service(model, FakeBuild(_THESE))
    yield service
    service.close()


@pytest.fixture
def compiling_service(model: Any, build: Build) -> Iterator[Service]:
    service = Service(model, build)
    yield service
    service.close()


def test_kernels_take_over_when_they_are_compiled(model: Any, compiling_service: Service) -> None:
    service = compiling_service
    queries = [service.ask(name) for name in ("a", "bb", "ccc")]
    service.kernel_swap.start()
    event = service.wait_for_event()
    assert (event.kind, event.message[:24]) == ("kernels", "compiled kernels took ov")
    assert isinstance(service.engine().target.lm.decoder, CpuDecoder)
    queries += [service.ask(name) for name in ("dddd", "eeeee")]
    for query in queries:
        assert service.answer(query) == plain(model, query)
    service.kernel_swap.stop()
    assert service.progress[-1] == "compiled kernels took over from torch"
    assert service.engine().policy.verify.ms(1, 1) != 1.0  # measured anew


def test_drafter_versions_are_swapped_in_before_and_after(model: Any, service: Service, tmp_path: Path) -> None:
    versions = FileWeightStore(tmp_path)
    hot_swap = HotSwap(lambda name: versions, LocalEngine(service.loop), retry_s=60.0, on_event=service.events.append)
    for number in (1, 2):
        versions.publish(weights_of(model), kind="model", config={}, parent=None)
        hot_swap.order({"model": number})
        hot_swap.obey()
        if number == 1:
            service.kernel_swap.swap()
        assert service.loop.status().drafter_version == number
    assert [event.kind for event in service.events] == ["swap", "kernels", "swap"]
    query = service.ask("g")
    assert service.answer(query) == plain(model, query)


def test_kernels_that_compute_something_else_do_not_take_over(
    model: Any, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: CompiledLayers, x_RH: Any, window: Any, firsts: Sequence[int] | None = None) -> Any:
        return np.ones_like(x_RH)

    monkeypatch.setattr(CompiledLayers, "__call__", broken)
    query = service.ask("a")
    service.kernel_swap.start()
    event = service.wait_for_event()
    assert event.kind == "error"
    assert "give other logits than the plain model" in event.message
    assert not isinstance(service.engine().target.lm.decoder, CpuDecoder)
    more = service.ask("bb")
    for one in (query, more):
        assert service.answer(one) == plain(model, one)


def test_a_target_without_kernels_serves_on_with_its_rows(model: Any) -> None:
    """Only its drafter is made again. Nothing may be timed over rows that hold what queries have read."""
    service = Service(model, FakeBuild(_THESE), backend=Undecoded(), kernels=Undecoded)
    try:
        target = service.engine().target
        for name in ("before", "after"):
            query = Request(request_id=name, prompt_ids=_LONG, params=greedy(16))
            service.loop.submit(query)
            assert service.answer(query) == plain(model, query)
            if name == "before":
                service.kernel_swap.swap()
        stats = service.answers["after"].stats
        assert service.engine().target is target
        assert stats is not None
        assert stats.reused_tokens == len(_LONG) - 1, "it was answered from the rows that the first query left"
    finally:
        service.close()


class NotedLock:
    """A lock that says when somebody finds it held."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_waited_for = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.is_waited_for.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_version_that_comes_while_the_drafter_is_made_again_is_not_lost(model: Any, tmp_path: Path) -> None:
    """Put into the drafter before, it would go with it."""
    service = Service(model, FakeBuild(_THESE), backend=Undecoded(), kernels=Undecoded)
    versions = FileWeightStore(tmp_path)
    service.loop.changing = lock = NotedLock()  # type: ignore[assignment]
    hot_swap = HotSwap(lambda name: versions, LocalEngine(service.loop), retry_s=60.0, on_event=service.events.append)
    swapping = threading.Thread(target=hot_swap.obey)

    def order_meanwhile() -> None:
        versions.publish(weights_of(model), kind="model", config={}, parent=None)
        versions.publish(weights_of(model), kind="model", config={}, parent=1)
        hot_swap.order({"model": 2})
        swapping.start()
        wait_for(lambda: lock.is_waited_for.is_set() or not swapping.is_alive(), "the version to be read")

    service.before_remake = order_meanwhile
    try:
        service.kernel_swap.swap()
        swapping.join(60)
        assert [event.kind for event in service.events] == ["kernels", "swap"]
        assert service.loop.status().drafter_version == 2
    finally:
        service.close()


def test_the_drafter_before_is_freed_at_once(model: Any) -> None:
    """Collections leave out what an engine's process has loaded, so nothing may hang on them."""
    torch_target = make_target(model, backend=TORCH)
    engine = make_engine(torch_target, model_drafter(copy.deepcopy(model), torch_target))
    [arm] = engine.policy.arms
    assert isinstance(arm.drafter, ModelDrafter)
    exclude_from_gc()
    before = weakref.ref(arm.drafter._lm)
    target = make_target(model, backend=load_these())
    engine.take_over(target, [model_drafter(copy.deepcopy(model), target)], made_up_costs())
    assert before() is None


def test_a_process_that_is_killed_leaves_torch_serving(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    build = Build(_THESE)
    service = Service(model, build)
    try:
        service.kernel_swap.start()
        os.kill(build.pid, signal.SIGKILL)
        event = service.wait_for_event()
        assert event.kind == "error"
        assert "ended by SIGKILL" in event.message
        query = service.ask("a")
        assert service.answer(query) == plain(model, query)
    finally:
        service.close()


def test_weights_are_not_held_twice(model: Any) -> None:
    """A model that is fused already is fused again as it is: its matrices are views of the same memory."""
    shared = copy.deepcopy(model)
    Llama(shared, max_positions=8)
    places = [weight.data_ptr() for weight in shared.parameters()]
    Llama(shared, max_positions=8)
    assert [weight.data_ptr() for weight in shared.parameters()] == places
