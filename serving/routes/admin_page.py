"""GET /admin: the page itself, which holds no data and so needs no token; the data that it fetches does."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serving.guards.admission import admits, anyone
from serving.guards.routes import SESSION_COOKIE
from serving.services import ServicesDep

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
_MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


def _asset(name: str, *, signed_in: bool = False) -> Response:
    text = (files("serving.admin") / name).read_text(encoding="utf-8")
    if signed_in:
        text = text.replace('data-signed-in="no"', 'data-signed-in="yes"')
    return Response(text, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=_HEADERS)


@router.get("/admin")
def page(http: Request, services: ServicesDep) -> Response:
    """The page. It tells its script, which cannot read the cookie, whether the browser has a session."""
    return _asset("page.html", signed_in=services.admin.has_session(http.cookies.get(SESSION_COOKIE, "")))


@router.get("/admin/page.css")
def style() -> Response:
    """The page's style sheet."""
    return _asset("page.css")


@router.get("/admin/page.js")
def script() -> Response:
    """The page's script: polling and actions."""
    return _asset("page.js")


@router.get("/admin/chart.js")
def chart_script() -> Response:
    """The script of the acceptance chart."""
    return _asset("chart.js")


@router.get("/admin/figures.js")
def figures_script() -> Response:
    """The script that formats figures."""
    return _asset("figures.js")
