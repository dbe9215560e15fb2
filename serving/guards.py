"""Dependencies that let a request through or refuse it."""

from __future__ import annotations

from fastapi import Request

from serving.api_keys import bearer
from serving.errors import ApiError
from serving.services import ServicesDep

SESSION_COOKIE = "osd_admin"
CSRF_HEADER = "X-OSD-Admin"
_SAFE_METHODS = frozenset({"GET", "HEAD"})


def require_api_key(request: Request, services: ServicesDep) -> None:
    """Refuse with 401 unless the API key is right, where keys are configured."""
    if not services.api_keys.allows(request.headers.get("authorization")):
        message = "Wrong or missing API key; send it as 'Authorization: Bearer KEY'."
        raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def require_admin(request: Request, services: ServicesDep) -> None:
    """Refuse unless the request carries the admin token, or the cookie of a session that it opened.

    A browser sends the cookie by itself, so a change also needs a header that no other site's page can add.
    """
    token = bearer(request.headers.get("authorization"))
    if token is not None:
        services.admin.check_token(token, peer_of(request))
        return
    if not services.admin.has_session(request.cookies.get(SESSION_COOKIE, "")):
        headers = {"WWW-Authenticate": "Bearer"}
        raise ApiError(401, "The admin token is needed.", code="admin_token_needed", headers=headers)
    if request.method not in _SAFE_METHODS and CSRF_HEADER not in request.headers:
        raise ApiError(403, f"The header {CSRF_HEADER} is needed.", code="csrf_header_needed")


def peer_of(request: Request) -> str:
    """The address that the request came from."""
    return request.client.host if request.client else "unknown"
