"""The engine as the routes use it. `actors/client.py` implements it over Ray; tests fake it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from osd.records.events import Event
from osd.records.query import Request, TokenDelta
from osd.records.status import AcceptancePoint, ServiceStatus
from osd.records.version import WeightManifest


class EngineClient(Protocol):
    """An engine in another process. Every call may raise EngineUnavailableError."""

    def generate(self, request: Request) -> AsyncIterator[TokenDelta]:
        """Stream one query's answer; the last delta carries `finish_reason` and `stats`.

        Closing the iterator early cancels the query. If the engine dies during the answer, the stream pauses until it
        is back and continues after the last delivered token: none is repeated, none missing.

        Raises:
            QueueFullError: too many queries are waiting.
            PromptTooLongError: the prompt leaves no room for a new token.
            EngineUnavailableError: no engine was available in time.
        """
        ...

    async def status(self) -> ServiceStatus:
        """A snapshot of the engine, the trainer and their processes."""
        ...

    async def events(self, limit: int) -> list[Event]:
        """The newest events, oldest first."""
        ...

    async def history(self, limit: int) -> list[AcceptancePoint]:
        """Acceptance of the newest finished queries, oldest first."""
        ...

    async def versions(self) -> list[WeightManifest]:
        """Every drafter version, oldest first."""
        ...

    async def pause_training(self) -> None:
        """Stop training until it is resumed; serving continues."""
        ...

    async def resume_training(self) -> None:
        """Resume training."""
        ...

    async def roll_back(self, to: int, reason: str) -> WeightManifest:
        """Serve drafter version `to` again; returns its manifest.

        Raises:
            UnknownVersionError: there is no such version.
            WeightsRefusedError: it serves already, was itself rolled back, is damaged, or was refused by the engine.
        """
        ...
