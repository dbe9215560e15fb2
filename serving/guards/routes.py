"""The guards of routes: API key, admin token or session, CSRF header. They run before a body is read."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

from fastapi import Request
from starlette.exceptions import HTTPException

from osd.config.server import Access, ServerConfig
from serving.guards.admission import Guard
from serving.guards.api_keys import api_key, bearer
from serving.services import Services
from serving.wire.errors import ApiError

SESSION_COOKIE = "osd_admin"
CSRF_HEADER = "X-OSD-Admin"
_SAFE_METHODS = frozenset({"GET", "HEAD"})


async def with_api_key(request: Request, services: Services) -> None:
    """Refuse unless the API key is right, where keys are configured."""
    await services.api_keys.check(api_key(request.headers), peer_of(request))


def key_domain(request: Request, services: Services) -> str | None:
    """The domain that the request's API key stands for; None if it stands for none."""
    return services.api_keys.domain(api_key(request.headers))


def owner_of(request: Request, services: Services) -> str:
    """Whose stored responses a request is about: those of its API key, or everybody's where none is asked for."""
    if not services.config.server.api_keys_sha256:
        return ""
    return sha256((api_key(request.headers) or "").encode()).hexdigest()


async def with_admin_token(request: Request, services: Services) -> None:
    """Refuse unless the request carries the admin token, or the cookie of a session.

    Browsers send the cookie automatically, so requests that change something also need a header that pages of other
    sites cannot set.
    """
    token = bearer(request.headers.get("authorization"))
    if token is not None:
        await services.admin.check_token(token, peer_of(request))
        return
    if not await services.admin.has_session(request.cookies.get(SESSION_COOKIE, "")):
        headers = {"WWW-Authenticate": "Bearer"}
        raise ApiError(401, "The admin token is needed.", code="admin_token_needed", headers=headers)
    if request.method not in _SAFE_METHODS:
        await with_csrf_header(request, services)


async def with_csrf_header(request: Request, services: Services) -> None:
    """Refuse requests that another site's page could make a browser send."""
    if CSRF_HEADER not in request.headers:
        raise ApiError(403, f"The header {CSRF_HEADER} is needed.", code="csrf_header_needed")


def as_configured(setting: Callable[[ServerConfig], Access]) -> Guard:
    """The guard named by a setting; a route that is 'off' answers 404."""

    async def guard(request: Request, services: Services) -> None:
        match setting(services.config.server):
            case "api_key":
                await with_api_key(request, services)
            case "admin":
                await with_admin_token(request, services)
            case "off":
                raise HTTPException(404)

    return guard


def peer_of(request: Request) -> str:
    """The address of the client."""
    return request.client.host if request.client else "unknown"
