"""The prefix cache: which row a new query is read into, and how much of it is known there already.

A row stays as its query left it until it is needed. A query that goes on where an ended one stopped, as the next turn
of a conversation does, takes that one's row over; one that shares only a beginning with another, as of a system prompt,
copies it into the row that was not used for longest. What it begins with need not be read again in either case. The
idea is RadixAttention's (Zheng et al. 2024, arXiv 2312.07104), with whole rows in place of a tree of pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_LEAST_TOKENS = 8
"""Fewer in common are not worth a copy."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a query is read.

    Example: `Place(row=5, source=0, num_tokens=31)`
    """

    row: int
    """A free one."""
    source: int
    """The row whose first positions are the query's, too; `row` itself when there is nothing to copy."""
    num_tokens: int
    """How many positions that are."""


class PrefixCache:
    """The tokens whose keys and values each row holds, whether a query decodes in it or not.

    Args:
        num_rows: of them.
    """

    def __init__(self, num_rows: int) -> None:
        self._held = [np.empty(0, dtype=np.int64) for _ in range(num_rows)]
        self._used = [0] * num_rows
        """When, in calls."""
        self._now = 0

    def place(self, ids: Sequence[int], first_free: int) -> Place:
        """The row for a query, which keeps what was used last, and what the query has in common with it or another.

        Args:
            ids: all known tokens. The last one has to be read in any case, for what follows it.
            first_free: this row and those after it are free; at least one is.
        """
        known = np.array(ids[:-1], dtype=np.int64)
        shared = [_num_shared(held, known) for held in self._held]
        most = max(shared)
        free = range(first_free, len(shared))
        oldest = min(free, key=self._used.__getitem__)
        if most < _LEAST_TOKENS:
            return Place(oldest, oldest, 0)
        for row in (oldest, *free):
            # To cut another query's row short for its system prompt would be a loss.
            if shared[row] == most and (row == oldest or 2 * most >= len(self._held[row])):
                return Place(row, row, most)
        source = shared.index(most)
        self._touch(source)
        return Place(oldest, source, most)

    def hold(self, row: int, ids: Sequence[int]) -> None:
        """A row's first positions are these tokens'; what comes after them means nothing."""
        self._held[row] = np.array(ids, dtype=np.int64)
        self._touch(row)

    def num_tokens(self, row: int) -> int:
        """Positions that a row is known to hold."""
        return len(self._held[row])

    def swap(self, row: int, other: int) -> None:
        """Two rows have changed places."""
        self._held[row], self._held[other] = self._held[other], self._held[row]
        self._used[row], self._used[other] = self._used[other], self._used[row]

    def clear(self) -> None:
        """Nothing is known of any row."""
        for row in range(len(self._held)):
            self.hold(row, ())

    def _touch(self, row: int) -> None:
        self._now += 1
        self._used[row] = self._now


def _num_shared(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """How many tokens two begin with alike."""
    length = min(len(one), len(other))
    differs = one[:length] != other[:length]
    return int(differs.argmax()) if differs.any() else length
