"""Fields that take an object, or its JSON as a string, as vLLM does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def read_json_text(what: str) -> Callable[[Any], Any]:
    """A validator that replaces a string by the JSON in it, and leaves other values as they are.

    Args:
        what: names the field's value in the message of a refusal.
    """

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"expected {what}: an object, or the JSON of one") from None

    return read
