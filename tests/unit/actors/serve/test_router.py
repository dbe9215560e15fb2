"""The router within Ray Serve's own base class: what it knows of engines, and in which order it tries them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve.request_router import PendingRequest

from actors.serve.prefixes import BLOCK_TOKENS, block_hashes
from actors.serve.router import PrefixRouter, Tries

_ENGINES = DeploymentID(name="engine", app_name="osd")
_PREFIX = block_hashes(range(3 * BLOCK_TOKENS))


@dataclass
class _Engine:
    """The parts of Serve's `RunningReplica` that a router uses."""

    name: str
    num_queries: int
    routing_stats: dict[str, Any] = field(default_factory=dict)
    max_ongoing_requests: int = 100
    num_probes: int = 0

    @property
    def replica_id(self) -> ReplicaID:
        return ReplicaID(self.name, _ENGINES)

    hangs: bool = False

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.num_probes += 1
        if self.hangs:
            await asyncio.sleep(2 * deadline_s)  # Serve gives it up at its deadline
        return self.num_queries


async def _order(router: PrefixRouter, engines: list[_Engine], **kwargs: Any) -> str:
    pending = PendingRequest(args=[], kwargs=kwargs, metadata=SimpleNamespace())
    ranks = await router.choose_replicas(engines, pending)
    assert pending.routing_context.should_backoff
    return "".join(engine.name for (engine,) in ranks)


@pytest.fixture
async def router() -> PrefixRouter:
    router = PrefixRouter(_ENGINES, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.initialize_state(num_rows=4)
    return router


async def test_the_least_loaded_is_first(router: PrefixRouter) -> None:
    engines = [_Engine("a", 2), _Engine("b", 0), _Engine("c", 1)]
    assert await _order(router, engines) == "bca"
    assert [engine.num_probes for engine in engines] == [1, 1, 1]
    assert await _order(router, engines, tries=Tries(["b"])) == "ca"
    assert await _order(router, engines, tries=Tries(["a", "b", "c"])) == "bca", (
        "all are full: one of them has to say so"
    )
    assert [engine.num_probes for engine in engines] == [1, 1, 1], "their loads are known"


async def test_an_engine_that_says_that_it_holds_the_prefix_is_first(router: PrefixRouter) -> None:
    held = {"prefixes": frozenset(_PREFIX[:2])}
    engines = [_Engine("a", 2, held), _Engine("b", 0), _Engine("c", 1, {"prefixes": frozenset(_PREFIX[:1])})]
    assert await _order(router, engines, prefix=_PREFIX) == "abc"
    assert await _order(router, engines, prefix=block_hashes((7,) * BLOCK_TOKENS)) == "bca"
    assert await _order(router, engines, prefix=_PREFIX, tries=Tries(["a"])) == "cb"


async def test_a_draining_engine_is_taken_only_if_there_is_no_other(router: PrefixRouter) -> None:
    engines = [_Engine("a", 0, {"draining": True, "prefixes": frozenset(_PREFIX)}), _Engine("b", 3)]
    assert await _order(router, engines, prefix=_PREFIX) == "b"
    assert await _order(router, engines, prefix=_PREFIX, tries=Tries(["b"])) == "a"


async def test_it_remembers_what_it_sent_until_the_engine_is_gone(router: PrefixRouter) -> None:
    engines = [_Engine("a", 0), _Engine("b", 1)]
    router.update_replicas(engines)
    sent = PendingRequest(args=[], kwargs={"prefix": _PREFIX[:2]}, metadata=SimpleNamespace())
    router.on_request_routed(sent, engines[1].replica_id, None)
    assert await _order(router, engines, prefix=_PREFIX) == "ba"
    router.update_replicas(engines[:1])
    router.update_replicas(engines)
    assert await _order(router, engines, prefix=_PREFIX) == "ab"


async def test_a_silent_engine_is_taken_only_if_there_is_no_other_not_even_a_full_one(router: PrefixRouter) -> None:
    engines = [_Engine("a", 0, {"prefixes": frozenset(_PREFIX)}), _Engine("b", 3), _Engine("c", 4)]
    assert await _order(router, engines, prefix=_PREFIX, tries=Tries(silent={"a"})) == "bc"
    assert await _order(router, engines, prefix=_PREFIX, tries=Tries(["b"], silent={"a"})) == "c"
    assert await _order(router, engines, prefix=_PREFIX, tries=Tries(["b", "c"], silent={"a"})) == "bc"
    assert await _order(router, engines, prefix=_PREFIX, tries=Tries(silent={"a", "b", "c"})) == "abc"


async def test_an_engine_that_tells_no_load_is_last_and_not_taken_for_an_idle_one(router: PrefixRouter) -> None:
    engines = [_Engine("a", 0, {"prefixes": frozenset(_PREFIX)}, hangs=True), _Engine("b", 3)]
    assert await _order(router, engines) == await _order(router, engines, prefix=_PREFIX) == "ba"


async def test_the_client_learns_which_engine_was_chosen_before_that_has_answered(router: PrefixRouter) -> None:
    engines, tries = [_Engine("a", 1), _Engine("b", 0)], Tries()
    pending = PendingRequest(args=[], kwargs={"tries": tries}, metadata=SimpleNamespace())
    await router.choose_replicas(engines, pending)
    assert tries.last == ""
    pending.future.set_result(engines[0])  # as Serve does, where the first choice has no room
    await asyncio.sleep(0)
    assert tries.last == "a"
    cancelled = PendingRequest(args=[], kwargs={"tries": tries}, metadata=SimpleNamespace())
    await router.choose_replicas(engines, cancelled)
    cancelled.future.cancel()
    await asyncio.sleep(0)
    assert tries.last == "a"
