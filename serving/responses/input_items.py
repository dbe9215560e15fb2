"""The input items of a response as they are listed: with ids, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from serving.responses.head import output_text
from serving.responses.items import CallItem, CallOutputItem, Item, ItemText, MessageItem, ReasoningItem
from serving.wire.errors import ApiError

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
Order = Literal["asc", "desc"]


def input_item_page(
    response_id: str, items: Sequence[Item], *, order: Order, limit: int, after: str | None
) -> dict[str, Any]:
    """One page of a list of items.

    Args:
        response_id: the response; items that were sent without an id get one that is made of this and their number.
        items: its input, oldest first.
        order: `desc` lists the newest first.
        limit: most items of the page.
        after: the id of the item before the page; None for the first page.

    Raises:
        ApiError: 400, there is no item `after`.
    """
    listed = [_listed(f"{response_id.removeprefix('resp_')}_in_{at}", item) for at, item in enumerate(items)]
    if order == "desc":
        listed.reverse()
    start = 0
    if after is not None:
        found = next((at for at, item in enumerate(listed) if item["id"] == after), None)
        if found is None:
            message = f"'after': the input of '{response_id}' has no item '{after}'."
            raise ApiError(400, message, param="after", code="invalid_value")
        start = found + 1
    page = listed[start : start + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": start + limit < len(listed),
    }


def _listed(own_id: str, item: Item) -> dict[str, Any]:
    sent = item.id if isinstance(item.id, str) and item.id else None
    head = {
        "id": sent or f"{_PREFIXES[item.type]}_{own_id}",
        "type": item.type,
        "status": item.status or "completed",
    }
    match item:
        case MessageItem(role="assistant"):
            return {**head, "role": item.role, "content": [output_text(part.text) for part in item.content]}
        case MessageItem():
            return {**head, "role": item.role, "content": _input_texts(item.content)}
        case CallItem():
            return {**head, "call_id": item.call_id, "name": item.name, "arguments": item.arguments}
        case CallOutputItem():
            return {**head, "call_id": item.call_id, "output": _input_texts(item.output)}
        case ReasoningItem():
            summary = [{"type": "summary_text", "text": part.text} for part in item.summary]
            content = [{"type": "reasoning_text", "text": part.text} for part in item.content]
            return {**head, "summary": summary, "content": content}


def _input_texts(parts: Sequence[ItemText]) -> list[dict[str, str]]:
    return [{"type": "input_text", "text": part.text} for part in parts]
