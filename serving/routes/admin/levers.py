"""/admin/api: signing in, the service's status, and what an operator can do."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from actors.supervisor.admin_sessions import SESSION_S
from osd.records.status import ServiceStatus
from osd.records.version import WeightManifest
from serving.guards.admission import admits
from serving.guards.routes import SESSION_COOKIE, peer_of, with_admin_token, with_csrf_header
from serving.openapi import ADMIN_SESSION, ADMIN_TOKEN, errors
from serving.routes.admin.audit import audit
from serving.services import ServicesDep
from serving.wire.inert_fields import WireModel
from serving.wire.text import Text

_OF_CHANGES = errors(403, 408, 413)
_MAX_LOGIN_BYTES = 16 << 10  # limits clients that have not signed in
public_router = APIRouter(
    prefix="/admin/api",
    route_class=admits(with_csrf_header, max_body_bytes=_MAX_LOGIN_BYTES),
    responses=errors(400, 401, 429, 500, 503) | _OF_CHANGES,
)
router = APIRouter(
    prefix="/admin/api",
    route_class=admits(with_admin_token, ADMIN_TOKEN, ADMIN_SESSION),
    responses=errors(401, 429, 500),
)


class LoginBody(WireModel):
    """The admin token, from the page's sign-in form."""

    token: str = Field(max_length=1000)


_Domain = Annotated[
    str,
    Field(
        max_length=64, description="Whose own drafter is meant, of which version 0 is the base drafter; empty: that."
    ),
]


class RollBackBody(WireModel):
    """The version to serve, and why. Always explicit, since "the previous version" may change meanwhile."""

    to: int = Field(ge=0)
    reason: Text = Field(min_length=1, max_length=500)
    domain: _Domain = ""


class UnpinBody(WireModel):
    """Which drafter's versions are tried again."""

    domain: _Domain = ""


@public_router.post("/login", status_code=204)
async def login(body: LoginBody, http: Request, services: ServicesDep) -> Response:
    """Open a session for the admin page. Its cookie is hidden from scripts and not sent along from other sites."""
    await services.admin.check_token(body.token, peer_of(http))
    response = Response(status_code=204)
    response.set_cookie(
        SESSION_COOKIE,
        await services.admin.open_session(),
        max_age=SESSION_S,
        path=http.scope.get("root_path", "") + "/admin",
        secure=http.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )
    return response


@router.post("/logout", status_code=204, responses=_OF_CHANGES | errors(503))
async def logout(http: Request, services: ServicesDep) -> Response:
    """End the session."""
    await services.admin.close_session(http.cookies.get(SESSION_COOKIE, ""))
    response = Response(status_code=204)
    response.delete_cookie(SESSION_COOKIE, path=http.scope.get("root_path", "") + "/admin")
    return response


@router.get("/status", responses=errors(503))
async def status(services: ServicesDep) -> ServiceStatus:
    """Status of the engine, the trainer and their processes."""
    return await services.client.status()


@router.get("/versions", responses=errors(503))
async def versions(services: ServicesDep, domain: _Domain = "") -> list[WeightManifest]:
    """Every version of the base drafter, or of a domain's own, oldest first."""
    return await services.client.versions(domain)


@router.post("/pause", status_code=204, responses=_OF_CHANGES | errors(503))
async def pause(http: Request, services: ServicesDep) -> None:
    """Stop training; serving continues."""
    await services.client.pause_training()
    await audit(http, services, "pause training")


@router.post("/resume", status_code=204, responses=_OF_CHANGES | errors(503))
async def resume(http: Request, services: ServicesDep) -> None:
    """Resume training."""
    await services.client.resume_training()
    await audit(http, services, "resume training")


@router.post("/roll_back", responses=_OF_CHANGES | errors(400, 404, 409, 503))
async def roll_back(body: RollBackBody, http: Request, services: ServicesDep) -> WeightManifest:
    """Serve a drafter version again.

    404: it does not exist; 409: it serves already, was rolled back, is damaged or was refused by the engine.
    """
    restored = await services.client.roll_back(body.to, body.reason, body.domain)
    await audit(http, services, f"serve version {body.to}{_of(body.domain)}: {body.reason}")
    return restored


@router.post("/pin", status_code=204, responses=_OF_CHANGES | errors(400, 404, 409, 503))
async def pin(body: RollBackBody, http: Request, services: ServicesDep) -> None:
    """Serve a drafter version on every engine, whatever is published, until it is unpinned.

    404: it does not exist; 409: it was rolled back, is damaged or was refused by an engine.
    """
    await services.client.pin(body.to, body.reason, body.domain)
    await audit(http, services, f"pin version {body.to}{_of(body.domain)}: {body.reason}")


@router.post("/unpin", status_code=204, responses=_OF_CHANGES | errors(400, 404, 503))
async def unpin(http: Request, services: ServicesDep, body: UnpinBody = UnpinBody()) -> None:  # noqa: B008 - never changed
    """Try newer drafter versions again."""
    await services.client.unpin(body.domain)
    await audit(http, services, f"unpin{_of(body.domain)}")


def _of(domain: str) -> str:
    return f" of domain {domain}" if domain else ""
