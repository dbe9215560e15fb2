"""Bounds `multipleOf` in a JSON Schema.

A grammar of the multiples of n has up to n states, which are all made when it is compiled: 9.5 s of CPU and 390 MiB for
999,983.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from math import lcm
from typing import Any

MAX_MULTIPLE = 100_000
"""Largest least common multiple of all `multipleOf` of a schema: about a second and 50 MiB to compile."""
_KEY = "multipleOf"
_IN_TEXT = re.compile(rf'"{_KEY}"\s*:\s*(-?[0-9.]+(?:[eE][+-]?[0-9]+)?)')
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")


def common_multiple(schema: Any) -> int:
    """The least common multiple of all `multipleOf` in a JSON Schema, without powers of ten, which cost nothing.

    Those of different places count together, since references and `allOf` may bring them to one place.
    """
    return lcm(*(_digits(value) for value in _values(schema)))


def common_multiple_in_text(grammar: str) -> int:
    """The same, for the schemas within a grammar in Lark's notation."""
    plain = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), grammar)
    return lcm(*(_digits(value) for value in _IN_TEXT.findall(plain)))


def too_large(multiple: int) -> str:
    """Why a constraint with this multiple is refused."""
    return f"the least common multiple of its multipleOf, {multiple}, is above {MAX_MULTIPLE}; take a smaller one"


def _values(schema: Any) -> Iterator[Any]:
    if isinstance(schema, dict):
        if _KEY in schema:
            yield schema[_KEY]
        schema = list(schema.values())
    if isinstance(schema, list):
        for value in schema:
            yield from _values(value)


def _digits(value: Any) -> int:
    """The digits of a number as an integer, without zeros at its end; 1 for what is no number above 0."""
    try:
        number = Decimal(str(value)).normalize()
    except InvalidOperation:
        return 1
    if not number.is_finite() or not number:
        return 1
    return int("".join(map(str, number.as_tuple().digits)))
