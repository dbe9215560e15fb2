"""GET /admin: the page itself, which holds no data and so needs no token; the data that it fetches does."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from osd.records.errors import EngineUnavailableError
from serving.guards.admission import admits, anyone
from serving.guards.routes import SESSION_COOKIE
from serving.services import Services, ServicesDep

router = APIRouter(route_class=admits(anyone), include_in_schema=False)

_HEADERS = {
    # No content from other hosts, nothing inline, no framing.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_MEDIA_TYPES = {"js": "text/javascript", "css": "text/css"}


_STATIC = files("serving.admin") / "static"


def _sources() -> dict[str, Traversable]:
    """File name to file, of all that the page loads."""
    found = [one for folder in (_STATIC, _STATIC / "vendor") for one in folder.iterdir()]
    return {one.name: one for one in found if one.name.rpartition(".")[2] in ("js", "css")}


_SOURCES = _sources()


@router.get("/admin")
async def page(http: Request, services: ServicesDep) -> Response:
    """The page. It tells its script, which cannot read the cookie, whether the browser has a session."""
    text = (_STATIC / "page.html").read_text(encoding="utf-8")
    if await _has_session(services, http.cookies.get(SESSION_COOKIE, "")):
        text = text.replace('data-signed-in="no"', 'data-signed-in="yes"')
    return Response(text, media_type="text/html", headers=_HEADERS)


@router.get("/admin/{name}")
def source(name: str) -> Response:
    """A script or style sheet of the page."""
    found = _SOURCES.get(name)
    if found is None:
        raise HTTPException(404)
    media_type = _MEDIA_TYPES[name.rpartition(".")[2]]
    return Response(found.read_text(encoding="utf-8"), media_type=media_type, headers=_HEADERS)


async def _has_session(services: Services, session: str) -> bool:
    """Whether the browser has a session; if nobody can say, the page asks for the token."""
    try:
        return await services.admin.has_session(session)
    except EngineUnavailableError:
        return False
