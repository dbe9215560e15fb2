"""Stores past responses, which can be retrieved and continued."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.responses.items import ITEMS, Item
from serving.wire.errors import ApiError


@dataclass(frozen=True, slots=True)
class _Stored:
    response: str
    """JSON."""
    items: bytes
    """All items up to the response's end, as JSON."""
    num_input: int
    """How many of them came before the response's output."""
    events: tuple[str, ...]
    """Those of a stream of it, each as JSON; none unless it was made in the background."""

    @property
    def num_bytes(self) -> int:
        return len(self.response) + len(self.items) + sum(map(len, self.events))


class ResponseStore:
    """The newest responses, in this process's memory, limited in bytes.

    A response belongs to the API key that requested it; other keys do not find it.

    Args:
        max_bytes: beyond this, the least recently used responses are dropped; 0 stores nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._num_bytes = 0
        self._stored: OrderedDict[tuple[str, str], _Stored] = OrderedDict()
        """By owner and id."""

    def put(self, owner: str, response: dict[str, Any], items: Sequence[Item], *, events: Sequence[str] = ()) -> None:
        """Store a finished response, unless it is larger than the store.

        Args:
            owner: whose it is.
            response: as it was sent.
            items: what came before its output.
            events: those of a stream of it, for who asks for one later.
        """
        output = [item for item in response["output"] if _can_be_sent_back(item)]
        items_json = ITEMS.dump_json([*items, *ITEMS.validate_python(output)], exclude_none=True)
        stored = _Stored(json.dumps(response), items_json, len(items), tuple(events))
        key = (owner, response["id"])
        if stored.num_bytes > self.max_bytes:
            return
        if key in self._stored:  # two requests at once chose this id
            self._num_bytes -= self._stored.pop(key).num_bytes
        self._stored[key] = stored
        self._num_bytes += stored.num_bytes
        while self._num_bytes > self.max_bytes:
            self._num_bytes -= self._stored.popitem(last=False)[1].num_bytes

    def items(self, owner: str, response_id: str, param: str) -> list[Item]:
        """All items up to this response's end.

        Raises:
            ApiError: 404, it is not stored, or belongs to another key.
        """
        return ITEMS.validate_json(self._get(owner, response_id, param).items)

    def input_items(self, owner: str, response_id: str) -> list[Item]:
        """All items before this response's output. Raises as `items` does."""
        stored = self._get(owner, response_id, "response_id")
        return ITEMS.validate_json(stored.items)[: stored.num_input]

    def events(self, owner: str, response_id: str) -> tuple[str, ...]:
        """The events of a response that was made in the background, each as JSON. Raises as `items` does."""
        return self._get(owner, response_id, "response_id").events

    def response(self, owner: str, response_id: str) -> dict[str, Any]:
        """The response as it was sent. Raises as `items` does."""
        response: dict[str, Any] = json.loads(self._get(owner, response_id, "response_id").response)
        return response

    def delete(self, owner: str, response_id: str) -> None:
        """Delete a response. Raises as `items` does."""
        self._num_bytes -= self._get(owner, response_id, "response_id").num_bytes
        del self._stored[owner, response_id]

    def check_unused(self, owner: str, response_id: str, param: str) -> None:
        """Check that an id which a client chose is new.

        Raises:
            ApiError: 400, a response of this owner has it.
        """
        if (owner, response_id) in self._stored:
            message = f"'{param}': there is a response '{response_id}' already; choose another id, or delete it first."
            raise ApiError(400, message, param=param, code="invalid_value")

    def _get(self, owner: str, response_id: str, param: str) -> _Stored:
        stored = self._stored.get((owner, response_id))
        if stored is None:
            message = (
                f"There is no response '{response_id}': it was never stored, or has been forgotten; "
                "send the conversation as 'input'."
            )
            raise ApiError(404, message, param=param, code="response_not_found")
        self._stored.move_to_end((owner, response_id))
        return stored


def _can_be_sent_back(item: dict[str, Any]) -> bool:
    """Not so a call whose arguments were cut off, which no template can write out."""
    return not (item["type"] == "function_call" and item["status"] == "incomplete")
