"""The path of a request without the prefix under which a reverse proxy serves osd."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


def route_path(scope: Scope) -> str:
    """The path without `root_path`, whether or not the reverse proxy has removed it already."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


class UnderRootPath:
    """Middleware that sets `root_path` in the ASGI scope to `server.root_path`, unless that is empty."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request (ASGI)."""
        await self.app({**scope, "root_path": self._root_path} if self._root_path else scope, receive, send)
