"""The operator's history in Redis: one sorted set for each tier and one for events, scored by time.

Beside each set a counter holds the bytes of its members. One Lua script writes all of them and then drops the oldest
members beyond the number and the bytes allowed. Members are dropped by number, never by age, so that a clock that jumps
far ahead deletes nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import msgspec

from osd.io.redis_client import connect, explained
from osd.monitor.buckets import TIERS, Bucket, Tier
from osd.records.events import Event

EVENTS_SHARE = 0.05
MAX_EVENTS = 20_000
_buckets = msgspec.msgpack.Decoder(Bucket)
_events = msgspec.msgpack.Decoder(Event)

# KEYS: id, then (set, bytes of the set) for each write. ARGV: a new id, then for each write: score, member, most
# members, most bytes, and 1 if the member replaces those with the same score.
_PUT = """
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SET', KEYS[1], ARGV[1]) end
for write = 0, (#KEYS - 1) / 2 - 1 do
    local set, size = KEYS[2 + 2 * write], KEYS[3 + 2 * write]
    local score, member, most, most_bytes, replaces = unpack(ARGV, 2 + 5 * write, 6 + 5 * write)
    local bytes = tonumber(redis.call('GET', size) or '0')
    if replaces == '1' then
        for _, old in ipairs(redis.call('ZRANGEBYSCORE', set, score, score)) do bytes = bytes - #old end
        redis.call('ZREMRANGEBYSCORE', set, score, score)
    end
    if redis.call('ZADD', set, score, member) == 1 then bytes = bytes + #member end
    local count = redis.call('ZCARD', set)
    while count > tonumber(most) or (bytes > tonumber(most_bytes) and count > 0) do
        count = count - 1
        bytes = bytes - #redis.call('ZPOPMIN', set)[1]
    end
    redis.call('SET', size, string.format('%.0f', bytes))
end
return redis.call('GET', KEYS[1])
"""


class RedisHistory:
    """Implements `osd.monitor.store.HistoryStore`.

    Args:
        url: of the Redis.
        name: prefix of the keys.
        max_bytes: most bytes of stored values, of all keys together. Redis adds some 100 bytes a member.

    Raises:
        OsdError: the URL is malformed.
    """

    def __init__(self, url: str, name: str, *, max_bytes: int) -> None:
        self._url, self._name, self._max_bytes = url, name, max_bytes
        self._client = connect(url)
        self._put = self._client.register_script(_PUT)

    def put(self, buckets: Sequence[tuple[Tier, Bucket]], events: Sequence[Event]) -> str:
        """See `HistoryStore`. An event that is stored already is not stored twice."""
        keys: list[str] = [f"{self._name}:id"]
        args: list[str | bytes | int] = [uuid4().hex]
        for tier, bucket in buckets:
            value = zlib.compress(msgspec.msgpack.encode(bucket), 1)
            keys += self._keys(tier.name)
            args += [repr(bucket.at_s), value, tier.num_buckets, int(self._max_bytes * tier.bytes_share), 1]
        for event in events:
            keys += self._keys("events")
            most_bytes = int(self._max_bytes * EVENTS_SHARE)
            args += [repr(event.at_s), msgspec.msgpack.encode(event), MAX_EVENTS, most_bytes, 0]
        with explained(self._url):
            return str(self._put(keys=keys, args=args).decode())

    def read(self, tier: Tier, from_s: float, to_s: float) -> list[Bucket]:
        """See `HistoryStore`."""
        with explained(self._url):
            members: Any = self._client.zrangebyscore(self._keys(tier.name)[0], from_s, to_s)
        return [_buckets.decode(zlib.decompress(member)) for member in members]

    def events(self, from_s: float, to_s: float, limit: int) -> list[Event]:
        """See `HistoryStore`."""
        with explained(self._url):
            members: Any = self._client.zrevrangebyscore(self._keys("events")[0], to_s, from_s, start=0, num=limit)
        return [_events.decode(member) for member in reversed(members)]

    def keep(self, name: str, value: bytes) -> None:
        """See `HistoryStore`."""
        with explained(self._url):
            self._client.set(f"{self._name}:{name}", value)

    def kept(self, name: str) -> bytes | None:
        """See `HistoryStore`."""
        with explained(self._url):
            value: Any = self._client.get(f"{self._name}:{name}")
        return None if value is None else bytes(value)

    def num_bytes(self) -> int:
        """Bytes of all stored values."""
        names = [tier.name for tier in TIERS] + ["events"]
        with explained(self._url):
            return sum(int(self._client.get(self._keys(name)[1]) or 0) for name in names)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _keys(self, part: str) -> list[str]:
        return [f"{self._name}:{part}", f"{self._name}:{part}:bytes"]
