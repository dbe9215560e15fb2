"""Signing in to the admin page: one admin token, and the browser sessions that it opens."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256

from serving.guards.api_keys import is_secret
from serving.guards.wrong_secrets import WrongSecrets
from serving.wire.errors import ApiError

SESSION_S = 12 * 3600
_MAX_SESSIONS = 64


class AdminSignIn:
    """Checks the admin token, and keeps sessions in memory, so a restart signs everyone out."""

    def __init__(
        self, token_sha256: str, clock_s: Callable[[], float] = time.monotonic, wrong: WrongSecrets | None = None
    ) -> None:
        self._token_sha256 = token_sha256
        self._clock_s = clock_s
        self._sessions: OrderedDict[str, float] = OrderedDict()
        self._wrong = wrong or WrongSecrets()

    async def check_token(self, token: str, peer: str) -> None:
        """Return if the token is right.

        Raises:
            ApiError: 401 for a wrong token, 429 after too many.
        """
        if not is_secret(token, self._token_sha256):
            headers = {"WWW-Authenticate": "Bearer"}
            refusal = ApiError(401, "Wrong admin token.", code="invalid_admin_token", headers=headers)
            raise await self._wrong.refusal(peer, refusal)

    def open_session(self) -> str:
        """Open a session; returns its secret, of which only the hash is stored."""
        session = secrets.token_urlsafe(32)
        self._sessions[_key(session)] = self._clock_s() + SESSION_S
        while len(self._sessions) > _MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return session

    def has_session(self, session: str) -> bool:
        """Whether this secret belongs to a session that has not expired."""
        return self._sessions.get(_key(session), 0.0) > self._clock_s()

    def close_session(self, session: str) -> None:
        """End a session."""
        self._sessions.pop(_key(session), None)


def _key(session: str) -> str:
    return sha256(session.encode(errors="replace")).hexdigest()
