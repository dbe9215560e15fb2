"""A lease in Redis: at most one distiller of a stream trains and publishes, wherever it runs.

The lease is a key that expires. Whoever takes it after somebody else gets the next fence, a number that only grows;
what a holder publishes carries its fence, so that what a deposed one publishes late can be told. A holder counts the
lease's time from before it asked for it, by its own monotonic clock, so it stops before another one can start; no
clocks of two machines are compared.

consumes: Redis
waits for: the interval between two renewals
is unblocked by: `close`
on failure: while Redis does not answer, the lease is held until its time is over, then no more until it is renewed
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable

from osd.io.redis_client import connect, explained
from osd.records.errors import OutcomeSinkError

_log = logging.getLogger(__name__)
_MARGIN = 0.2
"""Share of the lease's time before its end in which it counts as over: a step in progress has to end."""

# KEYS: lease, fence, last holder. ARGV: holder, milliseconds. Returns {fence} if the lease is ours, else {0, holder}.
_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return {0, holder} end
if not holder and redis.call('GET', KEYS[3]) ~= ARGV[1] then
    redis.call('INCR', KEYS[2])
    redis.call('SET', KEYS[3], ARGV[1])
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {tonumber(redis.call('GET', KEYS[2]))}
"""

# KEYS: lease. ARGV: holder.
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""


class Lease:
    """Takes the lease and renews it, on a thread of its own.

    Args:
        url: of Redis.
        name: of what is leased; the stream's, say.
        where: this process, for messages: node and process id.
        on_deposed: called when another distiller took it after this one held it, so that this one's state is outdated.
        ttl_s: how long a holder that died keeps others waiting.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        url: str,
        name: str,
        where: str,
        *,
        on_deposed: Callable[[], None] = lambda: None,
        ttl_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._key, self._ttl_s, self._clock = url, f"{name}:distiller", ttl_s, clock
        self._holder = f"{where} {uuid.uuid4().hex[:12]}"
        self._client = connect(url)
        self._take, self._release = self._client.register_script(_TAKE), self._client.register_script(_RELEASE)
        self._until_s = 0.0
        self.fence = 0
        """The fence of the lease when it was last held; 0 if it never was."""
        self.problem = ""
        """Why it is not held."""
        self._on_deposed, self._is_deposed = on_deposed, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osd-lease", daemon=True)

    def start(self) -> None:
        """Start the thread that takes and renews the lease."""
        self._thread.start()

    def is_held(self) -> bool:
        """Whether it is certainly held now."""
        return self._clock() < self._until_s - _MARGIN * self._ttl_s and not self._is_deposed

    def renew(self) -> bool:
        """Take the lease or renew it, in the caller's thread; whether it is held.

        Raises:
            OutcomeSinkError: Redis cannot be reached.
        """
        asked_s = self._clock()
        with explained(self._url):
            keys = [self._key, f"{self._key}:fence", f"{self._key}:last"]
            answer = self._take(keys=keys, args=[self._holder, int(self._ttl_s * 1000)])
        fence = int(answer[0])
        if not fence:
            holder = answer[1].decode().rpartition(" ")[0]
            self.problem = f"another distiller ({holder}) trains; this one takes over when that one is gone"
            if self.fence:
                self._depose()
            return False
        if self.fence and fence != self.fence:  # somebody held it in between
            self._depose()
        self.fence, self._until_s, self.problem = fence, asked_s + self._ttl_s, ""
        return not self._is_deposed

    def _depose(self) -> None:
        if not self._is_deposed:
            self._is_deposed = True
            self._on_deposed()

    def wait(self, stop: threading.Event) -> bool:
        """Wait until it is held; False if `stop` was set before."""
        while not stop.is_set() and not self.is_held():
            stop.wait(0.1)
        return not stop.is_set()

    def begin_again(self) -> None:
        """After `on_deposed`: forget that it was held, since what follows starts from the checkpoint."""
        self.fence, self._until_s, self._is_deposed = 0, 0.0, False

    def close(self) -> None:
        """Stop renewing it, and let another distiller have it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            with explained(self._url):
                self._release(keys=[self._key], args=[self._holder])
        except OutcomeSinkError as error:
            _log.debug("the lease runs out by itself: %s", error)
        self._until_s = 0.0
        self._client.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.renew()
            except OutcomeSinkError as error:
                if self.problem != str(error):
                    _log.warning("the distiller's lease cannot be renewed: %s", error)
                self.problem = str(error)
            self._stop.wait(self._ttl_s / 5)
