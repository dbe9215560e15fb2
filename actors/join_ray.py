"""Why a Ray cluster cannot be joined, in one line that says what to do."""

from __future__ import annotations

import re
import socket

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


def why_not_joined(address: str, error: Exception) -> str:
    """The message for what `ray.init` raised."""
    found = _VERSIONS.findall(str(error))
    if "ersion mismatch" in str(error) and len(found) == 2:
        (their_ray, their_python), (our_ray, our_python) = found
        return (
            f"the Ray cluster {address!r} runs Ray {their_ray} with Python {their_python}, osd here Ray {our_ray} with "
            f"Python {our_python}; install the same on all nodes (pip install ray=={their_ray}, or the newer one there)"
        )
    return f"cannot join the Ray cluster {address!r}: {reason(error)}; check cluster.address and its token (RAY_AUTH_*)"
