"""A Ray that osd starts for itself: reached from this machine only, and by nobody without its token.

Ray reads where to listen and whether to ask for a token from the environment when it is imported. So both are in the
environment that the driver's process is started with, and its Ray processes inherit them.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from importlib.metadata import version

from actors.session import listening
from osd.records.errors import OsdError

_MIN_VERSION = (2, 52)
"""The first Ray with token authentication."""
_FIX = "install ray>=2.52 (pip install -U ray), or name a cluster to join in cluster.address"
_ORDINARY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's metrics agent would only cost memory: osd has its own metrics.
    "RAY_enable_metrics_collection": "0",
    # Ray gives its workers a low priority; the engine must have the ordinary one, or the trainer's would be no lower.
    "RAY_worker_niceness": "0",
    # Actors ask for no GPU of their own, since engine and trainer may share one; Ray would hide it from them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # oneDNN keeps compiled products by shape, 1,024 of them: with prompts of every length, that alone is a gigabyte.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
}


def driver_environment(given: Mapping[str, str], *, is_local: bool) -> dict[str, str]:
    """The environment of the driver's process.

    Args:
        given: the server's own. What it sets of Ray's goes before osd's choices, but for what keeps a local Ray closed.
        is_local: start a Ray, rather than join a cluster, whose `RAY_AUTH_*` are the operator's.

    Returns:
        For a local Ray, with a token made for this start.
    """
    environment = {**_ORDINARY, **given}
    if is_local:
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
            environment.pop(name, None)
        # Named after the systems where it is Ray's default; everywhere it makes the node's address 127.0.0.1.
        environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        environment["RAY_AUTH_MODE"] = "token"
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return environment


def check_version(installed: str | None = None) -> None:
    """See that the installed Ray can ask for a token.

    Raises:
        OsdError: it is too old.
    """
    installed = installed or version("ray")
    if tuple(map(int, installed.split(".")[:2])) < _MIN_VERSION:
        raise OsdError(f"Ray {installed} cannot ask who connects to it (token authentication): {_FIX}")


def check_closed(session: int) -> None:
    """See that no process of a session listens beyond this machine.

    Args:
        session: the POSIX session of the driver.

    Raises:
        OsdError: one does.
    """
    for process, host, port in listening(session):
        address = ipaddress.ip_address(host)
        inner = getattr(address, "ipv4_mapped", None) or address
        if not inner.is_loopback:
            place = f"{host}:{port} ({process.name()})"
            raise OsdError(f"Ray {version('ray')} listens on {place}, beyond this machine: {_FIX}")
