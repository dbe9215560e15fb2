"""Connecting to Redis, and turning its failures into messages that say the fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from osd.records.errors import OsdError, OutcomeSinkError

_CONNECT_TIMEOUT_S = 1.0
COMMAND_TIMEOUT_S = 3.0


class RedisRefusedError(OutcomeSinkError):
    """Redis answers but refuses to serve us; an operator has to fix it, waiting does not help."""


def connect(url: str) -> redis.Redis:
    """A client with short timeouts and no retries; it connects at the first command.

    Raises:
        OsdError: the URL is malformed.
    """
    try:
        return redis.Redis.from_url(
            url,
            protocol=2,  # replies in the same form from every server version
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            socket_timeout=COMMAND_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
    except (ValueError, TypeError):  # their messages may quote the URL, and so the password
        raise OsdError(
            "the Redis URL is malformed; give redis://:PASSWORD@HOST:PORT/0, rediss://... or "
            "unix://:PASSWORD@/PATH?db=0, with special characters of the password percent-encoded"
        ) from None


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn any Redis failure in this block into an OutcomeSinkError that says the fix and holds no password.

    Raises:
        RedisRefusedError: wrong password, missing permission, or a server too old or misconfigured.
        OutcomeSinkError: unreachable, slow, loading or out of memory at present.
    """
    where = f"Redis at {_address(url)}"
    try:
        yield
    except redis.exceptions.BusyLoadingError:
        raise OutcomeSinkError(f"{where} is still loading its data; wait for it") from None
    except redis.AuthenticationError:
        raise RedisRefusedError(
            f"{where} refuses the password; correct user and password in OSD_REDIS_URL or outcomes.redis_url"
        ) from None
    except redis.TimeoutError:
        raise OutcomeSinkError(f"{where} does not answer in time; see whether it is overloaded or blocked") from None
    except redis.ConnectionError:
        raise OutcomeSinkError(
            f"{where} cannot be reached; start it, or correct OSD_REDIS_URL or outcomes.redis_url"
        ) from None
    except redis.RedisError as error:
        raise _refusal(where, str(error)) from None


def _refusal(where: str, answer: str) -> OutcomeSinkError:
    """The error for a Redis error reply, by its code; in a Lua script's errors the code is inside the text."""
    if "OOM " in answer:
        return OutcomeSinkError(
            f"{where} is out of memory; raise its maxmemory, or lower outcomes.max_bytes or outcomes.max_entries"
        )
    if "NOAUTH" in answer or "WRONGPASS" in answer:
        return RedisRefusedError(f"{where} asks for a password; put it into OSD_REDIS_URL or outcomes.redis_url")
    if "MISCONF" in answer:
        return OutcomeSinkError(f"{where} cannot write to its disk; free space there, its log has the reason")
    if "READONLY" in answer:
        return OutcomeSinkError(f"{where} is a read-only replica; name the primary in outcomes.redis_url")
    if "WRONGTYPE" in answer:
        return RedisRefusedError(
            f"{where} holds something else under the stream's name; choose another outcomes.stream"
        )
    return RedisRefusedError(f"{where} refuses: {answer}")


def _address(url: str) -> str:
    """Host and port, or socket path, without user, password and options."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else parts.netloc.rpartition("@")[2] or "localhost"
