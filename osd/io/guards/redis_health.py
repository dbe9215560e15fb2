"""Whether a Redis that osd did not start keeps what is written to it."""

from __future__ import annotations

import time
from typing import Any

import redis

from osd.io.redis_client import RedisRefusedError, connect, explained


def check_redis_keeps(url: str) -> list[str]:
    """Refuse a Redis that evicts keys at will, and return warnings about others that lose data.

    Raises:
        RedisRefusedError: it may evict any key: the whole stream, and the lease of the distiller.
        OutcomeSinkError: it cannot be reached.
    """
    client = connect(url)
    try:
        with explained(url):
            policy = str(client.info("memory").get("maxmemory_policy", ""))
            persistence: dict[str, Any] = client.info("persistence")
        if policy.startswith("allkeys"):
            raise RedisRefusedError(
                f"Redis may evict any key when its memory is full (maxmemory-policy {policy}), and so the whole "
                "outcome stream; set maxmemory-policy noeviction, or give osd a Redis of its own"
            )
        warnings = []
        if policy.startswith("volatile"):
            warnings.append(
                f"Redis may evict keys that expire (maxmemory-policy {policy}), and so the distiller's lease; "
                "set maxmemory-policy noeviction"
            )
        if not persistence.get("aof_enabled") and not _saves(client):
            warnings.append(
                "Redis keeps nothing on disk, so outcomes that were not learnt from and the history are lost when it "
                "restarts; set appendonly yes"
            )
        return warnings
    finally:
        client.close()


def clock_offset_s(url: str) -> float:
    """By how much this machine's wall clock is ahead of Redis's, in seconds.

    Raises:
        OutcomeSinkError: it cannot be reached.
    """
    client = connect(url)
    try:
        with explained(url):
            asked_s = time.time()
            seconds, microseconds = client.time()
        return (asked_s + time.time()) / 2 - (seconds + microseconds / 1e6)
    finally:
        client.close()


def _saves(client: redis.Redis) -> bool:
    """Whether it writes snapshots; assumed where the server does not say."""
    try:
        return bool(dict(client.config_get("save")).get("save"))
    except redis.RedisError:
        return True
