"""The path of a request as routes know it, behind a reverse proxy that serves this under a prefix."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


def route_path(scope: Scope) -> str:
    """The path without `root_path`, whether or not the reverse proxy has already taken that off."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


class UnderRootPath:
    """Middleware that makes `server.root_path` known to all that is behind it; an empty one changes nothing."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        await self.app({**scope, "root_path": self._root_path} if self._root_path else scope, receive, send)
