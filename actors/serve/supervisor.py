"""The supervisor as the only replica of the Ray Serve deployment `supervisor`."""

from __future__ import annotations

import logging

from actors.calls.by_serve import DISTILLER, SUPERVISOR, ask_by_serve
from actors.cluster.cluster import address_of_cluster
from actors.cluster.replica_logs import LogOfReplicas, start_replica_logs
from actors.supervisor.stream_keeper import claim_if_there
from actors.supervisor.supervisor import SupervisorActor
from osd.config.settings import Config

_log = logging.getLogger(__name__)


class SupervisorReplica(SupervisorActor):
    """Decides for all engines, and keeps the log of all replicas.

    Args:
        config: the whole configuration.

    Raises:
        RedisRefusedError: Redis may evict the stream, or another service has it.
    """

    def __init__(self, config: Config) -> None:
        self._kept_log = LogOfReplicas(config)
        start_replica_logs(SUPERVISOR, config, *self._kept_log.handlers())
        if self._kept_log.problem:
            _log.warning("%s", self._kept_log.problem)
        watched = {"distiller": DISTILLER} if config.trainer.enabled and config.outcomes.enabled else {}
        redis_url = config.outcomes.redis_url if config.outcomes.enabled else ""
        cluster = address_of_cluster()
        if redis_url:
            claim_if_there(config, redis_url, cluster)
        super().__init__(watched, None, config, redis_url, cluster, ask=ask_by_serve)

    def take_log(self, lines: list[str]) -> None:
        """Keep what another replica logged."""
        self._kept_log.write(lines)

    def __del__(self) -> None:
        """Stop watching (Ray Serve calls this before it ends the process)."""
        if hasattr(self, "_threads"):
            self.close()
            self._kept_log.close()
