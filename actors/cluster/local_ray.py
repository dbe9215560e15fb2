"""The environment of a local Ray: it listens on this machine only and requires a token.

Ray reads these settings from the environment when it is imported, so they are set in the environment of the driver's
process, from which Ray's processes inherit them.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from importlib.metadata import version

from actors.process.session import listening
from osd.records.errors import OsdError

_MIN_VERSION = (2, 52)
"""The first Ray with token authentication."""
_FIX = "install ray>=2.52 (pip install -U ray), or deploy to a cluster with --ray-address"
_ORDINARY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray's metrics agent would only use memory: osd has its own metrics.
    "RAY_enable_metrics_collection": "0",
    # By default Ray lowers its workers' priority. The engine must have the normal one, for the trainer's to be lower.
    "RAY_worker_niceness": "0",
    # Actors request no GPU, since engine and trainer may share one; by default Ray would then hide GPUs from them.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # oneDNN caches up to 1,024 compiled products, one per shape; with prompts of every length that is a gigabyte.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
}


def driver_environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of the driver's process, with a token made for this start.

    Args:
        given: the server's environment. Its Ray settings override osd's, except those that keep the Ray closed.
    """
    environment = {**_ORDINARY, **given}
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"):
        environment.pop(name, None)
    # Despite its name it has the same effect on Linux: the node's address becomes 127.0.0.1.
    environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    environment["RAY_AUTH_MODE"] = "token"
    environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return environment


def check_version(installed: str | None = None) -> None:
    """Check that the installed Ray supports token authentication.

    Raises:
        OsdError: it is too old.
    """
    installed = installed or version("ray")
    if tuple(map(int, installed.split(".")[:2])) < _MIN_VERSION:
        raise OsdError(f"Ray {installed} cannot ask who connects to it (token authentication): {_FIX}")


def check_closed(session: int) -> None:
    """Check that no process of the driver's session listens beyond this machine.

    Args:
        session: id of the driver's POSIX session.

    Raises:
        OsdError: a process does.
    """
    for process, host, port in listening(session):
        address = ipaddress.ip_address(host)
        inner = getattr(address, "ipv4_mapped", None) or address
        if not inner.is_loopback:
            place = f"{host}:{port} ({process.name()})"
            raise OsdError(f"Ray {version('ray')} listens on {place}, beyond this machine: {_FIX}")
