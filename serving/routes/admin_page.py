"""GET /admin: the page itself. It holds no data, so it needs no token; what it fetches does."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from serving.admission import admits, anyone

router = APIRouter(route_class=admits(anyone), include_in_schema=False)

_HEADERS = {
    # Nothing from elsewhere, nothing inline, no framing.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_MEDIA_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}


def _asset(name: str) -> Response:
    text = (files("serving.admin") / name).read_text(encoding="utf-8")
    return Response(text, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=_HEADERS)


@router.get("/admin")
def page() -> Response:
    """The shell, which shows a login form until there is a session."""
    return _asset("page.html")


@router.get("/admin/page.css")
def style() -> Response:
    """Its style."""
    return _asset("page.css")


@router.get("/admin/page.js")
def script() -> Response:
    """Its script: polling and the levers."""
    return _asset("page.js")


@router.get("/admin/chart.js")
def chart_script() -> Response:
    """Its acceptance chart."""
    return _asset("chart.js")
