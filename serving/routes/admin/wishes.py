"""/admin/api: the operator's lasting choices (a domain's policy, freezing, draining), and training on demand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from fastapi import APIRouter, Request
from pydantic import Field

from osd.monitor.wishes import Wishes
from serving.guards.admission import admits
from serving.guards.routes import with_admin_token
from serving.openapi import ADMIN_SESSION, ADMIN_TOKEN, errors
from serving.routes.admin.audit import audit
from serving.services import ServicesDep
from serving.wire.inert_fields import WireModel

router = APIRouter(
    prefix="/admin/api",
    route_class=admits(with_admin_token, ADMIN_TOKEN, ADMIN_SESSION),
    responses=errors(401, 429, 500),
)
_OF_CHANGES = errors(400, 403, 408, 413, 503)
_OF_ORDERS = errors(403, 408, 413, 503)


class PolicyBody(WireModel):
    """A domain's speculation length; 0 decodes plainly, null lets goodput choose."""

    domain: str = Field(min_length=1, max_length=200)
    length: int | None = Field(None, ge=0, le=16)


class FreezeBody(WireModel):
    """A domain to learn from no more, or (false) again."""

    domain: str = Field(min_length=1, max_length=200)
    frozen: bool = True


class DrainBody(WireModel):
    """An engine that takes no new queries, or (false) again."""

    engine: str = Field(min_length=1, max_length=200)
    draining: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WishesNow:
    """What the operator has asked for and holds."""

    lengths: dict[str, int]
    """Domain to the speculation length of its queries."""
    frozen: list[str]
    """Domains that the trainer does not learn from."""
    draining: list[str]
    """Engines that take no new queries."""
    paused: bool
    """No training until somebody resumes it."""

    @classmethod
    def of(cls, wishes: Wishes) -> Self:
        """From what the supervisor keeps."""
        return cls(
            lengths=wishes.lengths, frozen=sorted(wishes.frozen), draining=sorted(wishes.draining), paused=wishes.paused
        )


@router.get("/wishes", responses=errors(503))
async def wishes(services: ServicesDep) -> WishesNow:
    """What the operator has asked for and holds."""
    return WishesNow.of(await services.client.wishes())


@router.post("/policy", status_code=204, responses=_OF_CHANGES)
async def policy(body: PolicyBody, http: Request, services: ServicesDep) -> None:
    """Fix the speculation length of a domain's queries that do not ask for one themselves."""
    await services.client.set_length(body.domain, body.length)
    how = "chosen by goodput" if body.length is None else f"{body.length} tokens"
    await audit(http, services, f"speculation length of the domain {body.domain}: {how}")


@router.post("/freeze", status_code=204, responses=_OF_CHANGES)
async def freeze(body: FreezeBody, http: Request, services: ServicesDep) -> None:
    """Learn from a domain no more, or again. Its queries are served as before."""
    await services.client.set_frozen(body.domain, body.frozen)
    await audit(http, services, f"{'freeze' if body.frozen else 'thaw'} the domain {body.domain}")


@router.post("/drain", status_code=204, responses=_OF_CHANGES)
async def drain(body: DrainBody, http: Request, services: ServicesDep) -> None:
    """Give an engine no new queries, or again. Those that it has are answered."""
    await services.client.set_draining(body.engine, body.draining)
    await audit(http, services, f"{'drain' if body.draining else 'use'} the engine {body.engine}")


@router.post("/train_now", status_code=204, responses=_OF_ORDERS)
async def train_now(http: Request, services: ServicesDep) -> None:
    """Train until the gate's next decision, however busy the engine is."""
    await services.client.train_now()
    await audit(http, services, "train now")


@router.post("/publish", status_code=204, responses=_OF_ORDERS)
async def publish(http: Request, services: ServicesDep) -> None:
    """Publish the trainer's weights as they are, whatever the gate says. The watch after a swap still applies."""
    await services.client.publish_candidate()
    await audit(http, services, "publish the candidate")
