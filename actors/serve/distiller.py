"""The distiller as the only replica of the Ray Serve deployment `distiller`."""

from __future__ import annotations

from actors.calls.by_serve import DISTILLER, NAMES, ask_by_serve
from actors.cluster.replica_logs import join_cluster_logs
from actors.distiller.distiller import DistillerActor
from osd.config.settings import Config


class DistillerReplica(DistillerActor):
    """Trains while the engines have compute to spare.

    Args:
        config: the whole configuration.
        redis_url: the Redis of the outcome stream.
    """

    def __init__(self, config: Config, redis_url: str) -> None:
        join_cluster_logs(DISTILLER, config)
        super().__init__(config, redis_url, NAMES, ask=ask_by_serve)

    def __del__(self) -> None:
        """Save a checkpoint (Ray Serve calls this before it ends the process)."""
        if hasattr(self, "_threads"):
            self.close()
