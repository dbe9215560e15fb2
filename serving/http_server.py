"""The HTTP server of one process: uvicorn, which stops without waiting for admin pages that are open."""

from __future__ import annotations

import asyncio
import logging
import socket

import uvicorn
from fastapi import FastAPI

from osd.config.server import ServerConfig
from serving.guards.impatient import impatient

_GRACE_S = 5


class HttpServer(uvicorn.Server):
    """Serves an application of `serving.app.create_app` until it is told to stop.

    Then the streams of admin pages, which have no end of their own, are ended at once. Answers that are under way get
    `grace_s` seconds to end; then their connections are cut.

    Args:
        app: the application.
        config: section `server`.
        grace_s: see above.
    """

    def __init__(self, app: FastAPI, config: ServerConfig, *, grace_s: int = _GRACE_S) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=impatient(config.receive_timeout_s),
                ws="none",
                loop="asyncio",  # by itself uvicorn takes uvloop where that is installed, as ray[serve] does
                log_config=None,  # records go where all of osd's go
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=grace_s,
                ssl_certfile=config.ssl_certfile or None,
                ssl_keyfile=config.ssl_keyfile or None,
            )
        )
        self._snapshots = app.state.snapshots

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop (uvicorn calls this)."""
        logging.getLogger("uvicorn.error").addFilter(_is_no_cut)
        await self._snapshots.close()
        await super().shutdown(sockets)


def _is_no_cut(record: logging.LogRecord) -> bool:
    """False for the traceback that uvicorn logs for each answer that was cut.

    The line in which it says how many were cut is kept.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
