"""Signing in to the admin page: one admin token, and the browser sessions that it opens."""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Protocol

from actors.supervisor.admin_sessions import AdminSessions
from serving.guards.api_keys import is_secret
from serving.guards.wrong_secrets import WrongSecrets
from serving.wire.errors import ApiError


class Sessions(Protocol):
    """Keeps sessions by the digests of their secrets; every call may raise EngineUnavailableError."""

    async def open_session(self, digest: str) -> None:
        """Open a session."""
        ...

    async def has_session(self, digest: str) -> bool:
        """Whether it is open and has not expired."""
        ...

    async def close_session(self, digest: str) -> None:
        """End a session."""
        ...


class OwnSessions:
    """Keeps the sessions of one server in its memory.

    Args:
        sessions: holds them.
    """

    def __init__(self, sessions: AdminSessions | None = None) -> None:
        self._sessions = sessions or AdminSessions()

    async def open_session(self, digest: str) -> None:
        """See `Sessions`."""
        self._sessions.open(digest)

    async def has_session(self, digest: str) -> bool:
        """See `Sessions`."""
        return self._sessions.has(digest)

    async def close_session(self, digest: str) -> None:
        """See `Sessions`."""
        self._sessions.close(digest)


class AdminSignIn:
    """Checks the admin token, and opens sessions.

    Args:
        token_sha256: SHA-256 (hex) of the token; empty: nobody can sign in.
        sessions: keeps them; None: this object.
        wrong: counts wrong tokens.
    """

    def __init__(self, token_sha256: str, sessions: Sessions | None = None, wrong: WrongSecrets | None = None) -> None:
        self._token_sha256 = token_sha256
        self._sessions = sessions or OwnSessions()
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

    async def open_session(self) -> str:
        """Open a session; returns its secret, of which only the digest is stored."""
        session = secrets.token_urlsafe(32)
        await self._sessions.open_session(_digest(session))
        return session

    async def has_session(self, session: str) -> bool:
        """Whether this secret belongs to a session that has not expired."""
        return bool(session) and await self._sessions.has_session(_digest(session))

    async def close_session(self, session: str) -> None:
        """End a session."""
        await self._sessions.close_session(_digest(session))


def _digest(session: str) -> str:
    return sha256(session.encode(errors="replace")).hexdigest()
