"""Streams in Redis of tokens by domain: recent answers, from which every engine's `suffix` lookup learns, and labelled
prompts, from which its router does.

They are written beside the outcome stream, whose entries are some hundred times as large and therefore soon trimmed.
They have no consumer group: every reader reads all of it from a position of its own, at a start from the beginning.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from osd.io.redis_client import COMMAND_TIMEOUT_S, connect, explained
from osd.ports.outcomes import OutcomeSink
from osd.records.outcome import Outcome

FROM_START = "0-0"
_LONGEST_BLOCK_MS = int(COMMAND_TIMEOUT_S * 1000) // 2
_BYTES_PER_ENTRY = 128
"""Counted for each answer besides its tokens: what Redis and the other fields take."""

# KEYS: stream. ARGV: answer, its size in bytes, most bytes in the stream.
# `end` is the number of bytes ever written up to and including an entry; differences of it give the stream's size.
_PUT = """
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local total = (last and tonumber(last[2][2]) or 0) + ARGV[2]
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
while oldest and total - (tonumber(oldest[2][2]) - tonumber(oldest[2][4])) > tonumber(ARGV[3]) do
    redis.call('XDEL', KEYS[1], oldest[1])
    oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
end
redis.call('XADD', KEYS[1], '*', 'end', string.format('%.0f', total), 'size', ARGV[2], 'answer', ARGV[1])
"""


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of one query: its answer, or its prompt."""

    target_id: str
    domain: str
    token_ids: tuple[int, ...]


class Read(NamedTuple):
    """What a reader got."""

    position: str
    """From where it goes on."""
    answers: list[Answer]


class _Stored(msgspec.Struct, array_like=True):
    """An `Answer` as bytes, 4 per token."""

    target_id: str
    domain: str
    ids: bytes


class RedisAnswerStream:
    """Implements `OutcomeSink`, and is read by any number of readers.

    Args:
        url: redis://, rediss:// or unix:// with the password in it.
        stream: its name.
        max_bytes: most bytes kept; the oldest entries are dropped first. Of a longer entry, only the end is kept.
        tokens_of: which tokens of an outcome are kept; if there are none, nothing is.
    """

    def __init__(
        self,
        url: str,
        stream: str,
        *,
        max_bytes: int,
        tokens_of: Callable[[Outcome], Sequence[int]] = lambda outcome: outcome.output_ids,
    ) -> None:
        self._url, self._stream, self._max_bytes, self._tokens_of = url, stream, max_bytes, tokens_of
        self._client = connect(url)
        self._put_script = self._client.register_script(_PUT)

    def put(self, outcome: Outcome) -> None:
        """Append one outcome's tokens.

        Raises:
            OutcomeSinkError: Redis cannot take it now.
        """
        names = outcome.target_id, outcome.domain
        room_bytes = self._max_bytes - _BYTES_PER_ENTRY - sum(len(name.encode()) for name in names)
        tokens = self._tokens_of(outcome)
        if room_bytes < 4 or not tokens:
            return
        ids = array("I", tokens[-(room_bytes // 4) :]).tobytes()
        data = msgspec.msgpack.encode(_Stored(*names, ids))
        with explained(self._url):
            self._put_script(keys=[self._stream], args=[data, len(data) + _BYTES_PER_ENTRY, self._max_bytes])

    def read(self, after: str, max_count: int, block_ms: int) -> Read:
        """The entries after a position, oldest first; waits at most `block_ms` for the first.

        Raises:
            OutcomeSinkError: Redis cannot be reached.
        """
        with explained(self._url):
            reply: Any = self._client.xread(
                {self._stream: after}, count=max_count, block=min(block_ms, _LONGEST_BLOCK_MS) or None
            )
        entries = reply[0][1] if reply else []
        answers = [answer for _, fields in entries if (answer := _decoded(fields.get(b"answer", b"")))]
        return Read(entries[-1][0].decode() if entries else after, answers)

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._client.close()


class Sinks:
    """Several sinks as one: each outcome is put into all, in order. Implements `OutcomeSink`.

    A sink that fails leaves those after it without the outcome; the recorder then puts it into all of them again.
    """

    def __init__(self, sinks: Sequence[OutcomeSink]) -> None:
        self._sinks = sinks

    def put(self, outcome: Outcome) -> None:
        """See `OutcomeSink`."""
        for sink in self._sinks:
            sink.put(outcome)


def _decoded(data: bytes) -> Answer | None:
    """An answer; None for bytes that are none, which somebody else wrote."""
    try:
        stored = msgspec.msgpack.decode(data, type=_Stored)
        return Answer(stored.target_id, stored.domain, tuple(array("I", stored.ids)))
    except (msgspec.DecodeError, ValueError):
        return None
