"""/admin/api/playground: answers a prompt round by round, and tells how each token was produced."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from osd.records.query import Request as Query
from osd.records.query import SamplingParams, TokenDelta
from serving.answering.sse import EventStream, Framing, named_frame
from serving.codec import Codec
from serving.guards.admission import admits
from serving.guards.routes import with_admin_token
from serving.services import Services, ServicesDep
from serving.wire.errors import ApiError
from serving.wire.inert_fields import WireModel
from serving.wire.stats import osd_field
from serving.wire.text import Text

router = APIRouter(prefix="/admin/api", route_class=admits(with_admin_token), include_in_schema=False)
DOMAIN = "playground"
_MOST_TOKENS = 512
Kind = Literal["first", "accepted", "recovered", "bonus", "plain"]


class PlaygroundBody(WireModel):
    """The prompt and how it is to be answered."""

    prompt: Text = Field(min_length=1, max_length=20_000)
    max_tokens: int = Field(120, ge=1, le=_MOST_TOKENS)
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int | None = None
    plain: bool = False
    """Decode without speculation."""


@router.post("/playground")
async def playground(body: PlaygroundBody, services: ServicesDep) -> Response:
    """A stream of `round` events and a final `end`. The query is not recorded."""
    query = _query(body, services.codec)
    return EventStream(_rounds(query, services), Framing(frame=named_frame, error=_error, end=b""))


def _query(body: PlaygroundBody, codec: Codec) -> Query:
    try:
        prompt_ids = codec.encode_chat([{"role": "user", "content": body.prompt}])
    except ValueError:  # the target has no chat template
        prompt_ids = codec.encode_text(body.prompt)
    return Query(
        request_id=f"playground-{uuid.uuid4().hex}",
        prompt_ids=prompt_ids,
        params=SamplingParams(temperature=body.temperature, max_tokens=body.max_tokens, seed=body.seed),
        domain=DOMAIN,
        store=False,
        speculation_length=0 if body.plain else None,
    )


async def _rounds(query: Query, services: Services) -> AsyncGenerator[Mapping[str, Any] | None, None]:
    began_s, first_s = time.monotonic(), None
    deltas = services.client.generate(query)
    async for delta in deltas:
        first_s = first_s or time.monotonic()
        yield _round_event(delta, services.codec)
        if delta.finish_reason is not None:
            stats = {} if delta.stats is None else osd_field([delta.stats])
            yield {
                "type": "end",
                "finish_reason": delta.finish_reason,
                "error": delta.error,
                "osd": stats,
                "output_tokens": delta.stats.output_tokens if delta.stats else 0,
                "to_first_token_s": first_s - began_s,
                "decode_s": time.monotonic() - first_s,
            }


def _round_event(delta: TokenDelta, codec: Codec) -> dict[str, Any]:
    round_ = delta.round
    return {
        "type": "round",
        "arm": round_.drafter_name if round_ else "",
        "version": round_.drafter_version if round_ else 0,
        "proposed": round_.proposed if round_ else 0,
        "accepted": round_.accepted if round_ else 0,
        "tokens": [
            {"text": codec.token_text(token), "kind": kind}
            for token, kind in zip(delta.token_ids, _kinds(delta), strict=True)
        ],
    }


def _kinds(delta: TokenDelta) -> list[Kind]:
    """Where each token of a delta came from."""
    round_, num_tokens = delta.round, len(delta.token_ids)
    if round_ is None:
        return ["first"] * num_tokens
    if not round_.proposed:
        return ["plain"] * num_tokens
    last: Kind = "bonus" if round_.accepted == round_.proposed else "recovered"
    return ["accepted" if at < round_.accepted else last for at in range(num_tokens)]


def _error(error: ApiError) -> Mapping[str, Any]:
    return {"type": "error", **error.body()}
