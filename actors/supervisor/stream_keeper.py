"""Keeps the outcome stream this service's own and within its limit, and compares clocks with Redis.

consumes: Redis
waits for: the interval between two renewals of the claim
is unblocked by: `close`
on failure: while Redis does not answer, it is asked again
"""

from __future__ import annotations

import hashlib
import logging
import socket
import threading
import time
from collections.abc import Callable

from osd.config.settings import Config
from osd.fleet.clock_skew import skew_message
from osd.fleet.record_share import RecordShare
from osd.io.guards.redis_health import check_redis_keeps, clock_offset_s
from osd.io.guards.stream_owner import StreamOwner
from osd.io.redis_client import RedisRefusedError
from osd.records.errors import OutcomeSinkError
from osd.records.events import Event
from osd.records.status import StreamStatus

_log = logging.getLogger(__name__)
_INTERVAL_S = 2.0


def claim_stream(config: Config, redis_url: str, cluster: str = "") -> list[str]:
    """At the start: see that Redis keeps what is written to it, and claim the stream; returns warnings.

    Args:
        config: the whole configuration.
        redis_url: the Redis of the outcome stream.
        cluster: address of the Ray cluster; empty: this machine alone.

    Raises:
        RedisRefusedError: Redis may evict the stream, or another service has it.
        OutcomeSinkError: Redis cannot be reached.
    """
    warnings = check_redis_keeps(redis_url)
    owner = _owner(config, redis_url, cluster)
    try:
        owner.claim()
    finally:
        owner.close()
    return warnings


def claim_if_there(config: Config, redis_url: str, cluster: str) -> None:
    """The same for a cluster's service, where a Redis that is away only makes a warning.

    It must not keep a supervisor from starting again, and whoever deploys may be on a machine that does not reach it.
    The supervisor claims the stream once it is there.

    Raises:
        RedisRefusedError: Redis may evict the stream, or another service has it.
    """
    try:
        for warning in claim_stream(config, redis_url, cluster):
            _log.warning("%s", warning)
    except RedisRefusedError:
        raise
    except OutcomeSinkError as error:
        _log.warning("the stream is claimed later: %s", error)


class StreamKeeper:
    """Renews the claim and measures what is written, on a thread of its own.

    Args:
        config: the whole configuration.
        redis_url: the Redis of the outcome stream.
        on_event: told once of another service on the stream, and of a clock that is off.
        cluster: address of the Ray cluster; empty: this machine alone.
        outcomes_dropped: how many outcomes engines have lost.
        interval_s: pause between two renewals.
    """

    def __init__(
        self,
        config: Config,
        redis_url: str,
        on_event: Callable[[Event], None],
        cluster: str = "",
        *,
        outcomes_dropped: Callable[[], int] = lambda: 0,
        interval_s: float = _INTERVAL_S,
    ) -> None:
        self._redis_url, self._on_event, self._interval_s = redis_url, on_event, interval_s
        self._owner = _owner(config, redis_url, cluster)
        self._outcomes_dropped = outcomes_dropped
        self._share = RecordShare(config.outcomes.max_bytes_per_s)
        self._told: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osd-stream-keeper", daemon=True)
        self._thread.start()

    def status(self) -> StreamStatus:
        """What is written, and which share of the queries engines should record."""
        return StreamStatus(bytes_per_s=self._share.bytes_per_s, record_share=self._share.share)

    def close(self) -> None:
        """Stop renewing."""
        self._stop.set()
        self._thread.join()
        self._owner.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._owner.claim()
                self._share.look(self._owner.total_bytes(), time.monotonic(), self._outcomes_dropped())
                if message := skew_message("the supervisor's node", clock_offset_s(self._redis_url), "Redis's"):
                    self._tell("clock", message)
            except RedisRefusedError as error:
                self._tell("owner", str(error))
            except OutcomeSinkError as error:
                _log.debug("the claim is renewed later: %s", error)
            self._stop.wait(self._interval_s)

    def _tell(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.error("%s", message)
            self._on_event(Event(at_s=time.time(), kind="error", message=message))


def _owner(config: Config, redis_url: str, cluster: str) -> StreamOwner:
    """The same after a restart or an update, and another for a service in another cluster or on another machine."""
    where = f"Ray cluster {cluster}" if cluster else f"machine {socket.gethostname()}, {config.state_dir}"
    identity = f"{where}\n{config.cluster.application}"
    service = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return StreamOwner(redis_url, config.outcomes.stream, service, where)
