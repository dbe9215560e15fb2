"""The supervisor as the only replica of the Ray Serve deployment `supervisor`."""

from __future__ import annotations

import logging

import ray

from actors.serve.ask import DISTILLER, ask_by_serve
from actors.stream_keeper import claim_stream
from actors.supervisor import SupervisorActor
from osd.config.settings import Config
from osd.io.redis_client import RedisRefusedError
from osd.records.errors import OutcomeSinkError

_log = logging.getLogger(__name__)


class SupervisorReplica(SupervisorActor):
    """Decides for all engines.

    Args:
        config: the whole configuration.

    Raises:
        RedisRefusedError: Redis may evict the stream, or another service has it.
    """

    def __init__(self, config: Config) -> None:
        watched = {"distiller": DISTILLER} if config.trainer.enabled and config.outcomes.enabled else {}
        redis_url = config.outcomes.redis_url if config.outcomes.enabled else ""
        cluster: str = ray.get_runtime_context().gcs_address
        if redis_url:
            _claim(config, redis_url, cluster)
        super().__init__(watched, None, config, redis_url, cluster, ask=ask_by_serve)

    def __del__(self) -> None:
        """Stop watching (Ray Serve calls this before it ends the process)."""
        if hasattr(self, "_threads"):
            self.close()


def _claim(config: Config, redis_url: str, cluster: str) -> None:
    """Claim the stream; a Redis that is away must not keep a supervisor from starting again."""
    try:
        for warning in claim_stream(config, redis_url, cluster):
            _log.warning("%s", warning)
    except RedisRefusedError:
        raise
    except OutcomeSinkError as error:
        _log.warning("the stream is claimed later: %s", error)
