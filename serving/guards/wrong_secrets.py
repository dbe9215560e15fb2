"""Rate-limits wrong API keys and admin tokens, without affecting clients that send a right one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from math import ceil

from serving.wire.errors import ApiError

log = logging.getLogger(__name__)

MAX_WRONG = 10
WINDOW_S = 60.0
DELAY_S = 1.0
_MAX_PEERS = 1024
_MAX_DELAYED = 64


class WrongSecrets:
    """Counts wrong secrets by address.

    After 10 within a minute, further wrong ones from that address get 429, delayed by a second. Right secrets are never
    refused: an address may be shared (a proxy, an office), and somebody who guesses must not lock out its other users.
    Secrets must therefore be too long to guess; the limit makes guessing expensive and visible.
    """

    def __init__(
        self,
        clock_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock_s, self._sleep = clock_s, sleep
        self._times_s: OrderedDict[str, deque[float]] = OrderedDict()
        self._num_delayed = 0

    async def refusal(self, peer: str, first: ApiError) -> ApiError:
        """The answer to a wrong secret from `peer`: `first`, or 429 after too many."""
        now_s = self._clock_s()
        times_s = self._times_s.setdefault(peer, deque(maxlen=MAX_WRONG))
        self._times_s.move_to_end(peer)
        while len(self._times_s) > _MAX_PEERS:
            self._times_s.popitem(last=False)
        wait_s = times_s[0] + WINDOW_S - now_s if len(times_s) == MAX_WRONG else 0.0
        if wait_s <= 0:
            times_s.append(now_s)
            if len(times_s) == MAX_WRONG and times_s[0] > now_s - WINDOW_S:
                log.warning("%d wrong keys or tokens within a minute from %s", MAX_WRONG, peer)
            return first
        await self._delay()
        headers = {"Retry-After": str(ceil(wait_s))}
        return ApiError(429, "Too many wrong keys or tokens; wait a minute.", code="too_many_attempts", headers=headers)

    async def _delay(self) -> None:
        """Wait a second. The number of waiting answers is bounded, so that a flood does not pile up."""
        if self._num_delayed < _MAX_DELAYED:
            self._num_delayed += 1
            try:
                await self._sleep(DELAY_S)
            finally:
                self._num_delayed -= 1
