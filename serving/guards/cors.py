"""CORS: lets pages of other sites use the API from a browser."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.route_path import route_path


class ApiCors:
    """CORS headers for the listed origins, on every route but the admin page's.

    Pages may send any header but no cookies: the API uses none, and the admin page's session must not be used.

    Args:
        app: the wrapped ASGI app.
        origins: such as `https://chat.example.org`; `*` is any. Without origins no CORS headers are sent.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self.app = app
        self._with_cors = (
            app
            if not origins
            else CORSMiddleware(
                app,
                allow_origins=origins,
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=("*",),
                expose_headers=("X-Request-Id", "Retry-After"),
            )
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request (ASGI)."""
        is_admin = scope["type"] == "http" and f"{route_path(scope)}/".startswith("/admin/")
        await (self.app if is_admin else self._with_cors)(scope, receive, send)
