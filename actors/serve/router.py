"""Ray Serve's choice of an engine for a query: the one that holds its prefix, or else the least loaded.

Every process that sends queries has a router of its own. Engines publish what they hold as Serve's routing statistics;
until those arrive, a router goes by what it sent itself. Serve leaves out engines that it is about to stop; those that
the operator drains say so themselves, and are taken only if there is no other.
"""

from __future__ import annotations

import random
from asyncio import Future
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from actors.serve.prefixes import Candidate, HeldPrefixes, in_order, num_shared

T = TypeVar("T")
_NO_ANSWER = 1 << 30


@dataclass(slots=True)
class Tries:
    """A keyword argument of a call to an engine. The router of the calling process reads it, and writes `last` to it.

    The engine gets a copy, and does not read it.
    """

    avoid: list[str] = field(default_factory=list)
    """Engines that were full, or were asked already."""
    silent: Collection[str] = ()
    """Engines that died or hung lately: Serve may not have noticed yet."""
    last: str = ""
    """The engine that the call was sent to; empty until the router has chosen one."""

    def allowed(self, engines: Sequence[T], id_of: Callable[[T], str]) -> Sequence[T]:
        """The engines to choose from: those that are neither to be avoided nor silent; else those that are not silent;
        else all.

        Args:
            engines: all that run.
            id_of: the id of one.
        """
        for refused in ({*self.avoid, *self.silent}, self.silent):
            if left := [one for one in engines if id_of(one) not in refused]:
                return left
        return engines


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Reads two keyword arguments of `EngineReplica.generate`: `prefix`, block hashes, and `tries`."""

    def initialize_state(self, num_rows: int) -> None:
        """Take Serve's `request_router_kwargs`.

        Args:
            num_rows: queries that an engine decodes at once.
        """
        self._num_rows = num_rows
        self._sent: dict[ReplicaID, HeldPrefixes] = {}

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Engines in the order in which Serve should try them, each a rank of its own."""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # pause before the engines are tried once more
        tries = pending_request.kwargs.get("tries") or Tries()
        # An engine that hangs accepts no request, so `on_request_routed` comes too late to learn which one it was.
        pending_request.future.add_done_callback(partial(_note, tries))
        allowed = list(tries.allowed(candidate_replicas, lambda one: one.replica_id.unique_id))
        engines = [one for one in allowed if not one.routing_stats.get("draining", False)] or allowed
        loads = self._replica_queue_len_cache
        unknown = [one for one in engines if loads.get(one.replica_id) is None]
        if unknown and len(engines) > 1:  # else idle engines, whose figures are old, would get nothing
            await self._probe_queue_lens(unknown, 0)
        random.shuffle(engines)  # of equals, processes should not all choose the same one
        prefix = pending_request.kwargs.get("prefix", ())
        candidates = [
            Candidate(one, _load(loads, one), num_shared(prefix, self._held(one)) if prefix else 0) for one in engines
        ]
        return [[one] for one in in_order(candidates, self._num_rows)]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remember what the engine holds from now on."""
        if prefix := pending_request.kwargs.get("prefix", ()):
            self._sent.setdefault(replica_id, HeldPrefixes(self._num_rows)).add(prefix)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forget engines that are gone."""
        super().update_replicas(replicas)
        for gone in self._sent.keys() - self._replica_id_set:
            del self._sent[gone]

    def _held(self, engine: RunningReplica) -> frozenset[int]:
        published: frozenset[int] = engine.routing_stats.get("prefixes", frozenset())
        sent = self._sent.get(engine.replica_id)
        return published | sent.blocks() if sent else published


def _load(loads: Any, engine: RunningReplica) -> int:
    """Queries in an engine; one that did not answer even now counts as full."""
    known: int | None = loads.get(engine.replica_id)
    return _NO_ANSWER if known is None else known


def _note(tries: Tries, chosen: Future[RunningReplica]) -> None:
    """Note the engine that Serve has chosen in the end, unless the call was cancelled before."""
    if not chosen.cancelled() and chosen.exception() is None:
        tries.last = chosen.result().replica_id.unique_id
