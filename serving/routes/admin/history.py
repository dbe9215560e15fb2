"""/admin/api: history and events, also as files."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from math import inf
from typing import Annotated, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response

from osd.monitor.answer import BadRangeError
from osd.monitor.buckets import By, HistoryAnswer, HistoryQuery
from osd.records.events import Event, EventKind
from serving.guards.admission import admits
from serving.guards.routes import with_admin_token
from serving.openapi import ADMIN_SESSION, ADMIN_TOKEN, errors
from serving.routes.admin.live import plain_json
from serving.services import ServicesDep

router = APIRouter(
    prefix="/admin/api",
    route_class=admits(with_admin_token, ADMIN_TOKEN, ADMIN_SESSION),
    responses=errors(401, 429, 500),
)
_HOUR_S = 3600.0
_MOST_EVENTS = 5000
_TIME = "Seconds since the epoch; negative: before now."

From = Annotated[float, Query(alias="from", description=_TIME, allow_inf_nan=False)]
To = Annotated[float | None, Query(alias="to", description=_TIME, allow_inf_nan=False)]


def _moment(given_s: float, now_s: float) -> float:
    return now_s + given_s if given_s < 0 else given_s


@router.get("/history", responses=errors(400, 503))
async def history(
    services: ServicesDep,
    from_: From = -_HOUR_S,
    to: To = None,
    by: Annotated[list[By], Query(description="What keeps series apart.")] = [],  # noqa: B006 - FastAPI copies it
    step: Annotated[int, Query(ge=0, description="Seconds a point; 0: chosen for the range.")] = 0,
    domain: Annotated[str, Query(max_length=200, description="Only this domain.")] = "",
) -> HistoryAnswer:
    """Figures over time: sums at each point, of which the reader takes ratios."""
    now_s = time.time()
    end_s = now_s if to is None else _moment(to, now_s)
    query = HistoryQuery(
        from_s=_moment(from_, now_s), to_s=end_s, step_s=step, by=tuple(dict.fromkeys(by)), domain=domain
    )
    return await services.client.history(query)


@router.get(
    "/events",
    responses={
        200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "model": list[Event]},
        **errors(400, 503),
    },
)
async def events(
    services: ServicesDep,
    from_: From = 0.0,
    to: To = None,
    kind: Annotated[list[EventKind], Query(description="Only these kinds.")] = [],  # noqa: B006 - FastAPI copies it
    text: Annotated[str, Query(max_length=200, description="Only messages that contain this.")] = "",
    limit: Annotated[int, Query(ge=1, le=_MOST_EVENTS)] = 200,
    format: Annotated[Literal["json", "csv"], Query(description="'csv' answers with a file.")] = "json",  # noqa: A002
) -> Response:
    """The newest events that match, oldest first."""
    now_s = time.time()
    first_s = _moment(from_, now_s)
    last_s = inf if to is None else _moment(to, now_s)
    if first_s > last_s:
        raise BadRangeError(f"from ({first_s:g}) must be before to ({last_s:g})")
    is_filtered = bool(kind or text)
    found = await services.client.events(_MOST_EVENTS if is_filtered else limit, first_s, last_s)
    wanted = text.casefold()
    chosen = [one for one in found if (not kind or one.kind in kind) and wanted in one.message.casefold()][-limit:]
    if format == "csv":
        headers = {"Content-Disposition": "attachment; filename=osd-events.csv"}
        return Response("".join(_csv_lines(chosen)), media_type="text/csv", headers=headers)
    body = [{"at_s": one.at_s, "kind": one.kind, "message": one.message, "data": one.data} for one in chosen]
    return Response(json.dumps(plain_json(body)), media_type="application/json")


def _csv_lines(found: list[Event]) -> Iterator[str]:
    """RFC 4180. A cell that a spreadsheet would run as a formula begins with an apostrophe."""
    for row in [["time", "kind", "message", "data"], *map(_cells, found)]:
        line = io.StringIO()
        csv.writer(line).writerow(
            [f"'{cell}" if cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell for cell in row]
        )
        yield line.getvalue()


def _cells(event: Event) -> list[str]:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event.at_s))
    return [at, event.kind, event.message, json.dumps(event.data)]
