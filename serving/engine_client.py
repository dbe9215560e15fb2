"""The engine as the routes use it. `actors/service/client.py` implements it over Ray; tests fake it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from math import inf
from typing import Protocol

from osd.fleet.heartbeat import EngineReport
from osd.monitor.alerts import AlertsAnswer
from osd.monitor.buckets import HistoryAnswer, HistoryQuery
from osd.monitor.wishes import Wishes
from osd.records.events import Event
from osd.records.query import Request, TokenDelta
from osd.records.status import ServiceStatus
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

    async def events(self, limit: int, from_s: float = 0.0, to_s: float = inf) -> list[Event]:
        """The newest events in a range of time (seconds since the epoch), oldest first."""
        ...

    async def history(self, query: HistoryQuery) -> HistoryAnswer:
        """Read the operator's history.

        Raises:
            BadRangeError: the range makes no sense.
        """
        ...

    async def engines(self) -> list[EngineReport]:
        """The latest report of every engine."""
        ...

    async def alerts(self) -> AlertsAnswer:
        """Pending and firing alerts, and silenced rules."""
        ...

    async def acknowledge(self, name: str, subject: str, who: str) -> None:
        """Somebody takes care of an alert.

        Raises:
            UnknownAlertError: it does not hold (any more).
        """
        ...

    async def silence(self, name: str, for_s: float, who: str) -> None:
        """Tell nobody about a rule's alerts for a while.

        Raises:
            UnknownAlertError: there is no such rule, or the time makes no sense.
        """
        ...

    async def wishes(self) -> Wishes:
        """What the operator has asked for and holds."""
        ...

    async def set_length(self, domain: str, length: int | None) -> None:
        """Fix the speculation length of a domain's queries; None: chosen by goodput.

        Raises:
            BadWishError: it cannot be asked for.
        """
        ...

    async def set_frozen(self, domain: str, frozen: bool) -> None:
        """Learn from a domain no more, or again; raises BadWishError."""
        ...

    async def set_draining(self, engine_id: str, draining: bool) -> None:
        """Give an engine no new queries, or again; raises BadWishError."""
        ...

    async def train_now(self) -> None:
        """Train until the gate's next decision, however busy the engine is."""
        ...

    async def publish_candidate(self) -> None:
        """Publish the trainer's weights as they are, whatever the gate says."""
        ...

    async def mark(self, event: Event) -> None:
        """Keep an event in the history, such as an operator's action."""
        ...

    async def versions(self, domain: str = "") -> list[WeightManifest]:
        """Every version of a domain's own drafter, or (empty) of the base drafter, oldest first."""
        ...

    async def pause_training(self) -> None:
        """Stop training until it is resumed; serving continues."""
        ...

    async def resume_training(self) -> None:
        """Resume training."""
        ...

    async def roll_back(self, to: int, reason: str, domain: str = "") -> WeightManifest:
        """Serve version `to` of a domain's own drafter, or (empty) of the base drafter, again; returns its manifest.

        Raises:
            UnknownVersionError: there is no such version, or the domain has no drafter of its own.
            WeightsRefusedError: it serves already, was itself rolled back, is damaged, or was refused by the engine.
        """
        ...

    async def pin(self, version: int, reason: str, domain: str = "") -> None:
        """Serve this drafter version on every engine, whatever is published; raises what `roll_back` raises."""
        ...

    async def unpin(self, domain: str = "") -> None:
        """Try newer drafter versions again."""
        ...
