"""Gives each outcome stream one owning service, so that clusters never train on or judge by each other's outcomes."""

from __future__ import annotations

from osd.io.redis_client import RedisRefusedError, connect, explained
from osd.io.stream_scripts import TOTAL_BYTES

_TTL_S = 60

# KEYS: owner. ARGV: service, where, seconds. Returns the owner's "service where" if that is another service.
_CLAIM = """
local owner = redis.call('GET', KEYS[1])
if owner and string.sub(owner, 1, #ARGV[1] + 1) ~= ARGV[1] .. ' ' then return owner end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2], 'EX', ARGV[3])
return false
"""


class StreamOwner:
    """Claims a stream for a service. A claim that is not renewed expires after a minute.

    Args:
        url: of Redis.
        stream: the stream's name.
        service: identity of the service: the same after a restart, another for any other service.
        where: for messages: the service's address or machine.
    """

    def __init__(self, url: str, stream: str, service: str, where: str) -> None:
        self._url, self._stream, self._service, self._where = url, stream, service, where
        self._client = connect(url)
        self._script = self._client.register_script(_CLAIM)
        self._total = self._client.register_script(TOTAL_BYTES)

    def claim(self) -> None:
        """Claim the stream, or renew the claim.

        Raises:
            RedisRefusedError: another service owns the stream.
            OutcomeSinkError: Redis cannot be reached.
        """
        with explained(self._url):
            owner = self._script(keys=[f"{self._stream}:owner"], args=[self._service, self._where, _TTL_S])
        if owner:
            other = owner.decode().partition(" ")[2]
            raise RedisRefusedError(
                f"the stream {self._stream!r} belongs to another osd service ({other}); give this one its own "
                f"outcomes.stream, or stop the other and wait {_TTL_S} s"
            )

    def total_bytes(self) -> int:
        """Bytes of outcomes that were ever written to the stream, by anybody.

        Raises:
            OutcomeSinkError: Redis cannot be reached.
        """
        with explained(self._url):
            return int(self._total(keys=[self._stream]))

    def close(self) -> None:
        """Close the connection. The claim stays until it expires, so that the service can restart."""
        self._client.close()
