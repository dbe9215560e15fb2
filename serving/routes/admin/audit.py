"""Keeps who did what on the admin API, when and from where."""

from __future__ import annotations

import logging
import re
import time
from hashlib import sha256

from fastapi import Request

from osd.records.errors import EngineUnavailableError
from osd.records.events import Event
from serving.guards.api_keys import bearer
from serving.guards.routes import SESSION_COOKIE, peer_of
from serving.services import Services

_log = logging.getLogger(__name__)
OPERATOR_HEADER = "X-OSD-Operator"
_NAME = re.compile(r"[\w.@+ -]{1,64}")


def operator_of(request: Request) -> str:
    """Who acts: the name in `X-OSD-Operator`, which nobody checks, and how they signed in.

    Example: `anna (session 3f9a2c)`, `token`
    """
    if bearer(request.headers.get("authorization")) is not None:
        how = "token"
    else:  # a hash, since whoever has the cookie's value has the session
        how = f"session {sha256(request.cookies.get(SESSION_COOKIE, '').encode()).hexdigest()[:6]}"
    name = request.headers.get(OPERATOR_HEADER, "").strip()
    return f"{name} ({how})" if _NAME.fullmatch(name) else how


async def audit(request: Request, services: Services, what: str) -> None:
    """Keep an action that was carried out. It goes to the log as well, in case the history cannot take it."""
    who, where = operator_of(request), peer_of(request)
    message = f"{who} from {where}: {what}"
    _log.info("audit: %s", message)
    data = {"who": who, "from": where, "what": what}
    try:
        await services.client.mark(Event(at_s=time.time(), kind="audit", message=message, data=data))
    except EngineUnavailableError as error:
        _log.warning("the audit entry is in the log only: %s", error)
