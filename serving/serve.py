"""Runs the whole service in the foreground: Ray actors, HTTP app, uvicorn."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from actors.service.topology import start
from osd.assembly.kernels import early_build
from osd.config.paths import log_path
from osd.config.settings import Config
from osd.loading.resolve import configured_target
from osd.machine.logs import start_logs
from osd.machine.memory import exclude_from_gc
from osd.records.errors import OsdError
from osd.text.codec import TextCodec
from serving.app import create_app
from serving.http_server import HttpServer
from serving.preflight import check_certificate, check_machine, check_weight_files, exposure_warning

log = logging.getLogger(__name__)

_STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Serving:
    """What to tell the operator once the service is up."""

    url: str
    model: str
    drafter: str
    computes: str
    """See `EngineStatus`."""
    admin_token: str | None
    """The token made for this start; None if the operator set one."""
    context: str = ""
    """See `EngineStatus`."""
    stop: str = "Ctrl-C stops it"
    """How the service is ended."""


def run_server(
    config: Config,
    *,
    on_progress: Callable[[str, float], None],
    on_ready: Callable[[Serving], None],
    on_news: Callable[[str], None] = lambda line: None,
) -> None:
    """Serve until a signal arrives, then stop everything. SIGINT raises KeyboardInterrupt afterwards.

    Args:
        config: the whole configuration.
        on_progress: called with (stage, share done) during start-up.
        on_ready: called once the service is up.
        on_news: called on another thread with later news: kernels are compiled, and take over.

    Raises:
        OsdError: one line that says what is wrong and what to do.
    """
    signals = StopSignals()
    signals.catch()
    try:
        with listen(config.server.host, config.server.port) as listener:
            _serve(config, listener, on_progress, on_ready, on_news)
    except KeyboardInterrupt:
        if signals.received != signal.SIGTERM:
            raise


def _serve(
    config: Config,
    listener: socket.socket,
    progress: Callable[[str, float], None],
    on_ready: Callable[[Serving], None],
    on_news: Callable[[str], None],
) -> None:
    check_machine(config)
    check_certificate(config)
    options = config.log
    path = Path(options.file) if options.file else log_path(config.state_dir)
    logs = start_logs(path, "server", level=options.level, lines=options.format, max_bytes=options.max_bytes)
    with logs, early_build(config.target):
        _serve_target(config, listener, progress, on_ready, on_news)


def _serve_target(
    config: Config,
    listener: socket.socket,
    progress: Callable[[str, float], None],
    on_ready: Callable[[Serving], None],
    on_news: Callable[[str], None],
) -> None:
    resolved = configured_target(config, progress)
    check_weight_files(resolved.folder)
    if config.drafter.kind == "model" and config.drafter.model:
        from osd.drafters.create import check_drafter_model  # slow to import, and rarely needed here

        check_drafter_model(config, resolved.folder)
    with ExitStack() as stack:
        # Loading the tokenizer takes seconds, in which Ray and the engine start.
        opening = stack.enter_context(ThreadPoolExecutor(1)).submit(
            TextCodec.configured, resolved.folder, resolved.target_id, config.target
        )
        topology = stack.enter_context(start(config, progress, resolved=resolved, on_news=on_news))
        codec = opening.result()
        codec.context_tokens = topology.context_tokens
        token, digest = admin_token(config)
        app = create_app(config, topology.client, codec, admin_token_sha256=digest)
        if warning := exposure_warning(config, listener.getsockname()[0]):
            log.warning(warning)
        exclude_from_gc()
        scheme = "https" if config.server.ssl_certfile else "http"
        url = url_of(listener, scheme)
        on_ready(Serving(url, resolved.target_id, topology.drafter, topology.computes, token, context=topology.context))
        HttpServer(app, config.server).run(sockets=[listener])


class StopSignals:
    """Turns the first SIGINT or SIGTERM into KeyboardInterrupt in the main thread; later ones do not interrupt it."""

    def __init__(self) -> None:
        self.received: int | None = None

    def catch(self) -> None:
        """Install the handlers, unless a signal has arrived already."""
        if self.received is None and threading.current_thread() is threading.main_thread():
            for each in _STOPPING:
                signal.signal(each, self._stop)

    def _stop(self, number: int, _frame: object) -> None:
        self.received = number
        for each in _STOPPING:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Where clients reach it."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{scheme}://{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """Bind the port, before anything slow is started.

    Raises:
        OsdError: the port is in use, or the address is not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only on sockets whose protocol is explicitly TCP. Without it, a piece of a stream waits
    # up to 40 ms for the acknowledgement of the previous one.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
