"""Who may see and steer: one admin token, and the browser sessions that it opens."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from hashlib import sha256
from math import ceil

from serving.api_keys import is_secret
from serving.errors import ApiError

SESSION_S = 12 * 3600
_MAX_SESSIONS = 64
_MAX_FAILURES = 10
_FAILURE_WINDOW_S = 60.0
_MAX_PEERS = 1024


class AdminGate:
    """Checks the admin token and keeps sessions, in memory: a restart signs everyone out.

    After 10 wrong tokens within a minute a peer is refused until the minute has passed, right token or not.
    """

    def __init__(self, token_sha256: str, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._token_sha256 = token_sha256
        self._clock_s = clock_s
        self._sessions: OrderedDict[str, float] = OrderedDict()
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def check_token(self, token: str, peer: str) -> None:
        """Return if the token is right.

        Raises:
            ApiError: 401 for a wrong token, 429 after too many.
        """
        now_s = self._clock_s()
        recent = self._failures.setdefault(peer, deque(maxlen=_MAX_FAILURES))
        self._failures.move_to_end(peer)
        while len(self._failures) > _MAX_PEERS:
            self._failures.popitem(last=False)
        if len(recent) == _MAX_FAILURES and (wait_s := recent[0] + _FAILURE_WINDOW_S - now_s) > 0:
            headers = {"Retry-After": str(ceil(wait_s))}
            raise ApiError(
                429, "Too many wrong admin tokens; wait a minute.", code="too_many_attempts", headers=headers
            )
        if not is_secret(token, self._token_sha256):
            recent.append(now_s)
            raise ApiError(401, "Wrong admin token.", code="invalid_admin_token")
        recent.clear()

    def open_session(self) -> str:
        """A new session's secret; only its hash is kept."""
        session = secrets.token_urlsafe(32)
        self._sessions[_key(session)] = self._clock_s() + SESSION_S
        while len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def has_session(self, session: str) -> bool:
        """True while the session lasts."""
        return self._sessions.get(_key(session), 0.0) > self._clock_s()

    def close_session(self, session: str) -> None:
        """Sign out."""
        self._sessions.pop(_key(session), None)


def _key(session: str) -> str:
    return sha256(session.encode(errors="replace")).hexdigest()
