"""The cost of a round, calibrated at start and updated by measured rounds.

How cost grows with rows and tokens is calibrated once; its *scale* follows the newest rounds, separately for drafting
and verifying. A length that was slow once, on a busy machine, is thus not avoided for good.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from typing import NamedTuple

_SCALE_STEP = 0.05


class CostCurve:
    """Milliseconds of a pass by (rows, tokens per row), interpolated between calibrated points."""

    def __init__(self, points_ms: dict[tuple[int, int], float]) -> None:
        """From calibrated points, with the same token counts for every row count.

        Raises:
            ValueError: no points.
        """
        if not points_ms:
            raise ValueError("a cost curve needs at least one calibrated point")
        self._rows = sorted({rows for rows, _ in points_ms})
        self._tokens = sorted({tokens for _, tokens in points_ms})
        self._points_ms: dict[tuple[int, int], float] = {}
        for rows in self._rows:
            ceiling_ms = float("inf")
            # Fewer tokens never cost more, and noise only adds to timings: take the minimum with the next larger count.
            for tokens in reversed(self._tokens):
                ceiling_ms = min(ceiling_ms, points_ms[rows, tokens])
                self._points_ms[rows, tokens] = ceiling_ms
        self.scale = 1.0
        self._calibrated_ms = cache(self._interpolated_ms)
        """Cached, since it is called with the same arguments a dozen times per round."""

    def ms(self, rows: int, tokens: int) -> float:
        """Expected milliseconds of a pass."""
        return self.scale * self._calibrated_ms(rows, tokens)

    def observe(self, rows: int, tokens: int, took_ms: float) -> None:
        """Update the scale by a measured pass; an outlier counts at most as a factor of two."""
        ratio = took_ms / self.ms(rows, tokens)
        self.scale *= 1.0 + _SCALE_STEP * (min(max(ratio, 0.5), 2.0) - 1.0)

    def _interpolated_ms(self, rows: int, tokens: int) -> float:
        low_rows, high_rows, share = _bracket(self._rows, rows)
        low = self._along_tokens(low_rows, tokens)
        return low + share * (self._along_tokens(high_rows, tokens) - low)

    def _along_tokens(self, rows: int, tokens: int) -> float:
        low_tokens, high_tokens, share = _bracket(self._tokens, tokens)
        low = self._points_ms[rows, low_tokens]
        return low + share * (self._points_ms[rows, high_tokens] - low)


class ArmCosts(NamedTuple):
    """The costs of one drafter."""

    draft: CostCurve
    """By (rows, speculation length), for rows that the drafter has processed up to the last round."""
    reading: CostCurve
    """By (1, tokens): the time to process tokens of a query that is new to the drafter, or was decoded without it."""


class Costs(NamedTuple):
    """The costs of a round's parts."""

    verify: CostCurve
    """By (rows, tokens per row)."""
    arms: tuple[ArmCosts, ...]
    """For each drafter of the engine."""


def _bracket(grid: list[int], value: int) -> tuple[int, int, float]:
    """The grid points around a value, and its relative position between them (above 1 beyond the grid's end)."""
    if len(grid) == 1:
        return grid[0], grid[0], 0.0
    upper = min(max(bisect_left(grid, value), 1), len(grid) - 1)
    low, high = grid[upper - 1], grid[upper]
    return low, high, max((value - low) / (high - low), 0.0)
