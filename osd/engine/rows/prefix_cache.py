"""The prefix cache: which row a new query gets, and how much of its prompt is in a KV cache already.

A finished query's row is kept until it is needed. A query that continues an earlier one, such as the next turn of a
conversation, takes over that row. A query that shares only a prefix, such as a system prompt, copies it into the least
recently used row. In both cases the shared part is not prefilled again. The idea is RadixAttention's (Zheng et al.
2024, arXiv 2312.07104), with whole rows in place of a tree of pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LEAST_TOKENS = 8
"""Shorter common prefixes are not worth copying."""


@dataclass(frozen=True, slots=True)
class Place:
    """The row for a query, and the prefix that it can reuse.

    Example: `Place(row=5, source=0, num_tokens=31)`
    """

    row: int
    """The query's row, which is free."""
    source: int
    """The row that holds the prefix; equal to `row` if nothing needs to be copied."""
    num_tokens: int
    """Length of the prefix."""


class PrefixCache:
    """The tokens whose keys and values each row holds, in use or free.

    Args:
        num_rows: number of rows.
    """

    def __init__(self, num_rows: int) -> None:
        self._held = [np.empty(0, dtype=np.int64) for _ in range(num_rows)]
        self._salts = [""] * num_rows
        self._used = [0] * num_rows
        """When each row was last used, counted in calls."""
        self._now = 0

    def place(self, ids: Sequence[int], first_free: int, salt: str = "") -> Place:
        """Choose a row for a query: one that holds a prefix of it, or else the least recently used free one.

        Args:
            ids: the query's tokens so far. The last one is always processed, since its logits are needed.
            first_free: this row and all after it are free; there is at least one.
            salt: only rows with the same salt are shared.
        """
        known = np.array(ids[:-1], dtype=np.int64)
        shared = [
            _num_shared(held, known) if own == salt else 0 for held, own in zip(self._held, self._salts, strict=True)
        ]
        most = max(shared)
        free = range(first_free, len(shared))
        oldest = min(free, key=self._used.__getitem__)
        if most < _LEAST_TOKENS:
            return Place(oldest, oldest, 0)
        for row in (oldest, *free):
            # A row is only truncated for a prefix of at least half of it; a system prompt is copied instead.
            if shared[row] == most and (row == oldest or 2 * most >= len(self._held[row])):
                return Place(row, row, most)
        source = shared.index(most)
        self._touch(source)
        return Place(oldest, source, most)

    def hold(self, row: int, ids: Sequence[int], salt: str = "") -> None:
        """Record the tokens at a row's first positions, and whose they are; what lies after them is undefined."""
        self._held[row], self._salts[row] = np.array(ids, dtype=np.int64), salt
        self._touch(row)

    def num_tokens(self, row: int) -> int:
        """Number of positions known to be filled in a row."""
        return len(self._held[row])

    def swap(self, row: int, other: int) -> None:
        """Exchange two rows."""
        self._held[row], self._held[other] = self._held[other], self._held[row]
        self._salts[row], self._salts[other] = self._salts[other], self._salts[row]
        self._used[row], self._used[other] = self._used[other], self._used[row]

    def clear(self) -> None:
        """Forget what all rows hold."""
        for row in range(len(self._held)):
            self.hold(row, ())

    def _touch(self, row: int) -> None:
        self._now += 1
        self._used[row] = self._now


def _num_shared(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Length of the common prefix."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length
