"""Ray Serve's choice of an engine for a query: the one that holds its prefix, or else the least loaded.

Every process that sends queries has a router of its own. Engines publish what they hold as Serve's routing statistics;
until those arrive, a router goes by what it sent itself. Serve leaves out engines that it is about to stop; those that
the operator drains say so themselves, and are taken only if there is no other.
"""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from actors.serve.prefixes import Candidate, HeldPrefixes, in_order, num_shared


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray has no types
    """Reads two keyword arguments of `EngineReplica.generate`: `prefix`, block hashes, and `avoid`, engine ids."""

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
        avoid = pending_request.kwargs.get("avoid", ())
        engines = [one for one in candidate_replicas if one.replica_id.unique_id not in avoid] or candidate_replicas
        engines = [one for one in engines if not one.routing_stats.get("draining", False)] or engines
        loads = self._replica_queue_len_cache
        unknown = [one for one in engines if loads.get(one.replica_id) is None]
        if unknown and len(engines) > 1:  # else idle engines, whose figures are old, would get nothing
            await self._probe_queue_lens(unknown, 0)
        random.shuffle(engines)  # of equals, processes should not all choose the same one
        prefix = pending_request.kwargs.get("prefix", ())
        candidates = [
            Candidate(one, loads.get(one.replica_id) or 0, num_shared(prefix, self._held(one)) if prefix else 0)
            for one in engines
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
