"""The outcome stream in Redis: a bounded buffer between the engines and the trainer."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from typing import Any

import redis

from osd.io.codec import OutcomeFormatError, decode, encode
from osd.io.find_redis import OLDEST_VERSION
from osd.io.redis_client import COMMAND_TIMEOUT_S, RedisRefusedError, connect, explained
from osd.io.stream_scripts import LAG, PUT
from osd.records.errors import OutcomeSinkError
from osd.records.outcome import Outcome

logger = logging.getLogger(__name__)

_LONGEST_BLOCK_MS = int(COMMAND_TIMEOUT_S * 1000) // 2

# If a put times out, it may or may not have happened. The mark makes repeating it harmless for this long.
_MARK_S = 600


class RedisOutcomeStream:
    """Implements OutcomeSink and OutcomeSource of `osd.ports`.

    `put` may be called from several threads and processes. Reading and acknowledging is for one thread; each reader
    needs its own consumer name, and must keep it when it restarts.
    """

    def __init__(
        self,
        url: str,
        stream: str,
        *,
        max_entries: int,
        max_bytes: int,
        group: str = "osd-trainer",
        consumer: str = "trainer",
        dead_after_s: float = 600.0,
        claim_interval_s: float = 5.0,
    ) -> None:
        """Prepare; the first method call connects to Redis.

        Args:
            url: redis://, rediss:// or unix:// with the password in it.
            stream: Name of the stream.
            max_entries: Most outcomes kept; the oldest are dropped first, read or not.
            max_bytes: Most bytes of encoded outcomes kept; the oldest are dropped first, read or not.
            group: Redis consumer group; its readers share the outcomes.
            consumer: This reader's name in the group.
            dead_after_s: Outcomes that another reader has held unacknowledged for this long are taken over.
            claim_interval_s: Pause after all of those were looked through.

        Raises:
            OsdError: the URL is malformed.
        """
        self._url = url
        self._stream = stream
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._group = group
        self._consumer = consumer
        self._dead_after_s = dead_after_s
        self._claim_interval_s = claim_interval_s
        self._client = connect(url)
        self._put_script = self._client.register_script(PUT)
        self._lag_script = self._client.register_script(LAG)
        self._held: set[str] = set()
        """Positions delivered by this object and not yet acknowledged."""
        self._own_pending_after: str | None = "0-0"
        """Position up to which entries left unacknowledged by an earlier run were read again; None: all of them."""
        self._claim_after = "0-0"
        self._next_claim_s = 0.0
        self._has_group = False

    def check(self) -> None:
        """Check that Redis accepts us, so that a wrong password is reported at start-up.

        Raises:
            RedisRefusedError: wrong password, missing permission or a version that is too old.
            OutcomeSinkError: Redis cannot be reached now; recording may start anyway, since outcomes are spilled.
        """
        with explained(self._url):
            info: dict[str, Any] = self._client.info("server")
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_VERSION:
            raise RedisRefusedError(f"Redis is version {version}; osd needs 6.2 or newer")

    def put(self, outcome: Outcome) -> None:
        """Append one outcome and trim the oldest beyond the limits. Repeating a put within minutes adds nothing.

        Raises:
            OutcomeSinkError: Redis cannot take it now.
            ValueError: the outcome alone exceeds `max_bytes`.
        """
        data = encode(outcome)
        if len(data) > self._max_bytes:
            raise ValueError(f"an outcome of {len(data)} bytes exceeds outcomes.max_bytes = {self._max_bytes}")
        mark = f"{self._stream}:put:{hashlib.sha256(data).hexdigest()[:32]}"
        with explained(self._url):
            self._put_script(keys=[self._stream, mark], args=[data, self._max_entries, self._max_bytes, _MARK_S])

    def read(self, max_count: int, block_ms: int) -> list[tuple[str, Outcome]]:
        """The next outcomes as (stream position, outcome), oldest first; this object delivers each of them once.

        The order is: entries this consumer left unacknowledged in an earlier run, then those of dead consumers, then
        new ones. May return fewer than exist, or none before `block_ms` is over: call it again.

        Args:
            max_count: Most outcomes returned.
            block_ms: How long to wait for a new one; 0 does not wait.

        Raises:
            OutcomeSinkError: Redis cannot be reached.
        """
        with explained(self._url):
            for _ in range(2):
                if not self._has_group:
                    self._create_group()
                try:
                    return (
                        self._outcomes(self._own_pending(max_count))
                        or self._outcomes(self._claimed(max_count))
                        or self._outcomes(self._new(max_count, block_ms))
                    )
                except redis.ResponseError as error:
                    if not str(error).startswith("NOGROUP"):
                        raise
                    logger.warning("stream %s lost its consumer group; making a new one", self._stream)
                    self._has_group = False
            return []

    def ack(self, positions: Sequence[str]) -> None:
        """Acknowledge entries, so that they are never delivered again: a checkpoint contains them.

        Raises:
            OutcomeSinkError: Redis cannot be reached.
        """
        if positions:
            with explained(self._url):
                self._client.xack(self._stream, self._group, *positions)
            self._held.difference_update(positions)

    def lag(self) -> int | None:
        """The number of outcomes that no reader of the group was given yet; None if Redis cannot be reached."""
        try:
            with explained(self._url):
                return int(self._lag_script(keys=[self._stream], args=[self._group]))
        except OutcomeSinkError:
            return None

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._client.close()

    def _create_group(self) -> None:
        """Create the group at the stream's beginning: `$` would skip what was written before the first reader."""
        try:
            self._client.xgroup_create(self._stream, self._group, id="0", mkstream=True)
            self._held.clear()  # a new group has delivered nothing
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        self._own_pending_after, self._claim_after = "0-0", "0-0"
        self._has_group = True

    def _own_pending(self, max_count: int) -> list[_Entry]:
        if self._own_pending_after is None:
            return []
        entries = self._read_group(max_count, self._own_pending_after, None)
        self._own_pending_after = _position(entries[-1]) if entries else None
        return entries

    def _claimed(self, max_count: int) -> list[_Entry]:
        if time.monotonic() < self._next_claim_s:
            return []
        reply: list[Any] = self._client.xautoclaim(
            self._stream,
            self._group,
            self._consumer,
            min_idle_time=int(self._dead_after_s * 1000),
            start_id=self._claim_after,
            count=max_count,
        )
        self._claim_after = reply[0].decode()
        if self._claim_after == "0-0":
            self._next_claim_s = time.monotonic() + self._claim_interval_s
        # Redis 6.2 returns no position for an entry trimmed in between; the next run drops it as its own pending.
        return [entry for entry in reply[1] if entry[0] is not None]

    def _new(self, max_count: int, block_ms: int) -> list[_Entry]:
        # BLOCK 0 would wait for ever, and a block longer than the socket's timeout would look like a dead Redis.
        return self._read_group(max_count, ">", min(block_ms, _LONGEST_BLOCK_MS) or None)

    def _read_group(self, max_count: int, after: str, block_ms: int | None) -> list[_Entry]:
        reply: Any = self._client.xreadgroup(
            self._group, self._consumer, {self._stream: after}, count=max_count, block=block_ms
        )
        return reply[0][1] if reply else []

    def _outcomes(self, entries: list[_Entry]) -> list[tuple[str, Outcome]]:
        """Decode entries; those that were trimmed before delivery, or hold no outcome, are acknowledged at once."""
        outcomes, useless = [], []
        for entry in entries:
            position, fields = _position(entry), entry[1]
            if position in self._held:
                continue
            if not fields:
                useless.append(position)
                continue
            try:
                outcomes.append((position, decode(fields.get(b"outcome", b""))))
            except OutcomeFormatError as error:
                logger.warning("skipping entry %s of stream %s: %s", position, self._stream, error)
                useless.append(position)
        if useless:
            self._client.xack(self._stream, self._group, *useless)
        self._held.update(position for position, _ in outcomes)
        return outcomes


_Entry = tuple[bytes, dict[bytes, bytes]]


def _position(entry: _Entry) -> str:
    return entry[0].decode()
