"""The objects that all routes of one app share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from osd.config.settings import Config
from osd.fleet.heartbeat import EngineReport
from osd.records.errors import EngineUnavailableError
from osd.records.status import ServiceStatus
from serving.admin.sign_in import AdminSignIn
from serving.codec import Codec
from serving.engine_client import EngineClient
from serving.guards.api_keys import ApiKeys
from serving.observing.metrics import Metrics
from serving.observing.tracing import Tracing
from serving.responses.background import BackgroundResponses
from serving.responses.store import ResponseStore

T = TypeVar("T")
_STATUS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The shared objects of one app, which has no other state."""

    config: Config
    client: EngineClient
    codec: Codec
    api_keys: ApiKeys
    admin: AdminSignIn
    responses: ResponseStore
    background: BackgroundResponses
    metrics: Metrics
    tracing: Tracing | None = None

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that clients may use for the one model: with a revision (`owner/name@v1`), also without it."""
        own = self.codec.model_id
        bare = own.removesuffix(f"@{self.config.target.revision}")
        return self.config.server.model_names or tuple(dict.fromkeys((own, bare)))

    def model_name(self, asked: str | None) -> str:
        """The name under which an answer is given: as asked for, or the first of the names."""
        return asked or self.model_names[0]

    async def status_or_none(self) -> ServiceStatus | None:
        """A snapshot of the engine; None if it does not answer soon."""
        return await _soon(self.client.status())

    async def reports(self) -> list[EngineReport]:
        """The latest report of each engine; none if the supervisor does not answer soon."""
        return await _soon(self.client.engines()) or []


async def _soon(answer: Awaitable[T]) -> T | None:
    try:
        async with asyncio.timeout(_STATUS_TIMEOUT_S):
            return await answer
    except (EngineUnavailableError, TimeoutError):
        return None


def services_of(request: Request) -> Services:
    """The services of the app that received this request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
