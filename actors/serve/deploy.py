"""Deploys an application to a running Ray cluster by Ray Serve. Nothing of it ends with this process."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from actors.cluster.cluster import check_free_gpus
from actors.cluster.join_ray import check_address, check_node, native_errors, why_not_joined
from osd.config.settings import Config
from osd.records.errors import OsdError

_LOOK_S = 0.5
_REQUEST_SLACK_S = 60.0
"""Serve's proxies cut a request this long after osd itself would have."""


@contextmanager
def joined(config: Config) -> Iterator[None]:
    """Connected to the cluster at `cluster.address`.

    Raises:
        OsdError: it cannot be reached, or refuses.
    """
    address = config.cluster.address
    check_address(address)
    check_node(address)
    with native_errors() as errors:
        try:
            ray.init(
                address=address,
                runtime_env=config.cluster.runtime_env or None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            errors.seek(0)
            raise OsdError(why_not_joined(address, error, errors.read())) from error
    try:
        yield
    finally:
        ray.shutdown()


def deploy(application: Any, config: Config, on_progress: Callable[[str], None]) -> None:
    """Deploy an application, or update the one of the same name, and wait until it serves.

    Args:
        application: a bound Serve application.
        config: `cluster.application` names it; Serve listens as `server` says.
        on_progress: called with what is waited for.

    Raises:
        OsdError: it does not start, or Serve listens elsewhere already.
    """
    _start_serve(config)
    name = config.cluster.application
    if name not in serve.status().applications:  # else GPUs are reserved by what is updated
        gpus = [found.get("GPU", 0.0) for found in (ray.cluster_resources(), ray.available_resources())]
        check_free_gpus(config, *gpus)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(serve.run, application, name=name, route_prefix="/")
        while not _is_done(running):
            on_progress(_waits_for(name))
    try:
        running.result()
    except (RuntimeError, RayServeException, ray.exceptions.RayError) as error:
        raise OsdError(f"Ray Serve cannot start {name!r}: {_cause(str(error))}") from error


def _start_serve(config: Config) -> None:
    server = config.server
    serve.start(
        proxy_location="EveryNode",
        http_options={
            "host": server.host,
            "port": server.port,
            "request_timeout_s": server.request_timeout_s + _REQUEST_SLACK_S,
            "ssl_certfile": server.ssl_certfile or None,
            "ssl_keyfile": server.ssl_keyfile or None,
        },
    )
    listens = _get_global_client().http_config
    if (listens.host, listens.port) != (server.host, server.port):
        raise OsdError(
            f"Ray Serve runs in this cluster and listens on {listens.host}:{listens.port}, not on "
            f"{server.host}:{server.port}; give that address with --host and --port, or end it with `serve shutdown`"
        )


def _is_done(running: Any) -> bool:
    """Whether the deployment has ended, after waiting for a moment."""
    try:
        running.exception(_LOOK_S)
    except TimeoutError:
        return False
    return True


def _waits_for(name: str) -> str:
    """One line about an application that is being deployed."""
    application = serve.status().applications.get(name)
    if application is None:
        return "deploying"
    parts = [
        f"{deployment} {' and '.join(f'{num} {state.lower()}' for state, num in sorted(one.replica_states.items()))}"
        for deployment, one in application.deployments.items()
        if one.status != "HEALTHY"
    ]
    return "deploying: " + (", ".join(parts) if parts else str(application.status).lower())


def _cause(message: str) -> str:
    """What osd said, of Serve's message with tracebacks of several processes."""
    said = re.findall(r"^(?:(?:osd|actors|trainer|serving)\.[\w.]+|OsdError|ConfigError): (.+)$", message, re.MULTILINE)
    return said[-1] if said else " ".join(message.split())[:500]
