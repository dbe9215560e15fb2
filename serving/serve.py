"""Running the whole service in the foreground: topology, HTTP app, uvicorn."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn

from actors.topology import start
from osd.config import Config
from osd.text import TextCodec
from osd.types import OsdError
from serving.app import create_app

_GRACE_S = 5


@dataclass(frozen=True, slots=True)
class Serving:
    """What an operator is told when the service is up."""

    url: str
    model: str
    admin_token: str | None
    """Made for this start; None when the operator set one."""


def run_server(
    config: Config, *, on_progress: Callable[[str, float], None], on_ready: Callable[[Serving], None]
) -> None:
    """Serve until a signal ends it; everything that was started is stopped.

    Args:
        config: everything.
        on_progress: told (stage, share done) while the service comes up.
        on_ready: told once it is up.

    Raises:
        OsdError: one line that says what is wrong and what to do.
    """
    listener = listen(config.server.host, config.server.port)
    with listener, start(config, on_progress) as topology:
        token, digest = admin_token(config)
        codec = TextCodec.open(topology.resolved.folder, topology.resolved.target_id, config.target.max_context_tokens)
        app = create_app(config, topology.client, codec, admin_token_sha256=digest)
        host, port = listener.getsockname()[:2]
        on_ready(Serving(f"http://{host}:{port}", topology.resolved.target_id, token))
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_GRACE_S)
        )
        server.run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Take the port before anything slow is started.

    Raises:
        OsdError: it is in use, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise OsdError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from None
    return listener


def admin_token(config: Config) -> tuple[str | None, str]:
    """(a token made for this start or None, the SHA-256 that the app checks against).

    `OSD_ADMIN_TOKEN` gives the token itself, `server.admin_token_sha256` its hash.
    """
    if config.server.admin_token_sha256:
        return None, config.server.admin_token_sha256
    given = os.environ.get("OSD_ADMIN_TOKEN", "")
    token = given or secrets.token_urlsafe(16)
    return (None if given else token), hashlib.sha256(token.encode()).hexdigest()
