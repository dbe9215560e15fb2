"""What the routes of one app share, and how they reach it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from osd.config.settings import Config
from osd.records.errors import EngineUnavailableError
from osd.records.status import ServiceStatus
from serving.admin.gate import AdminGate
from serving.codec import Codec
from serving.engine_client import EngineClient
from serving.guards.api_keys import ApiKeys
from serving.observing.metrics import Metrics

_STATUS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything behind one app. There is no other state."""

    config: Config
    client: EngineClient
    codec: Codec
    api_keys: ApiKeys
    admin: AdminGate
    metrics: Metrics = field(default_factory=Metrics)

    async def status_or_none(self) -> ServiceStatus | None:
        """A snapshot of the engine, or None when it does not answer soon."""
        try:
            async with asyncio.timeout(_STATUS_TIMEOUT_S):
                return await self.client.status()
        except (EngineUnavailableError, TimeoutError):
            return None


def services_of(request: Request) -> Services:
    """The services of the app that took this request."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
