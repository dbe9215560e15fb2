"""Admin sessions whose keeper does not answer."""

from __future__ import annotations

from osd.records.errors import EngineUnavailableError


class AwaySessions:
    """Implements `serving.admin.sign_in.Sessions`; every call fails."""

    async def open_session(self, digest: str) -> None:
        raise EngineUnavailableError("the supervisor is restarting")

    async def has_session(self, digest: str) -> bool:
        raise EngineUnavailableError("the supervisor is restarting")

    async def close_session(self, digest: str) -> None:
        raise EngineUnavailableError("the supervisor is restarting")
