"""Why a Ray cluster cannot be joined, in one line that says what to do."""

from __future__ import annotations

import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import psutil

from osd.records.errors import OsdError, reason

_CONNECT_S = 5.0
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")


def check_address(address: str) -> None:
    """See that something listens at `host:port`; Ray itself would try for a minute. Other addresses are left to Ray.

    Raises:
        OsdError: nothing listens there.
    """
    match = re.fullmatch(r"\[?([^\s/]+?)\]?:(\d{1,5})", address)
    if match is None:
        return
    try:
        with socket.create_connection((match[1], int(match[2])), timeout=_CONNECT_S):
            return
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise OsdError(
            f"no Ray answers at cluster.address {address!r} ({why}); start it there (ray start --head), open the "
            "port, or correct the address"
        ) from None


def check_node(address: str) -> None:
    """See that a node of Ray runs on this machine: programs join a cluster through one, which Ray seeks for a minute.

    Raises:
        OsdError: there is none.
    """
    if address.startswith("ray://"):  # Ray's client server is the node
        return
    if not any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"])):
        raise OsdError(_no_node(address))


def _no_node(address: str) -> str:
    return (
        f"no node of the Ray cluster {address!r} runs on this machine; run this command on one of its nodes, or make "
        f"this machine one (ray start --address={address} --num-cpus=0)"
    )


@contextmanager
def native_errors() -> Iterator[IO[str]]:
    """Keeps what is written to the process's standard error meanwhile; Ray's core complains there once a second."""
    with tempfile.TemporaryFile("w+") as kept:
        shown = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield kept
        finally:
            os.dup2(shown, 2)
            os.close(shown)


def why_not_joined(address: str, error: Exception, said: str = "") -> str:
    """The message for what `ray.init` raised, and what Ray's core said meanwhile."""
    if "InvalidAuthToken" in said:
        return (
            f"the Ray cluster {address!r} asks for another token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to its "
            "token (`ray get-auth-token` on one of its nodes says it)"
        )
    found = _VERSIONS.findall(str(error))
    if "ersion mismatch" in str(error) and len(found) == 2:
        (their_ray, their_python), (our_ray, our_python) = found
        return (
            f"the Ray cluster {address!r} runs Ray {their_ray} with Python {their_python}, osd here Ray {our_ray} with "
            f"Python {our_python}; install the same on all nodes (pip install ray=={their_ray}, or the newer one there)"
        )
    if "No node info found" in str(error):  # a node of another cluster runs here
        return _no_node(address)
    return f"cannot join the Ray cluster {address!r}: {reason(error)}; check cluster.address and its token (RAY_AUTH_*)"
