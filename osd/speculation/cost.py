"""What a round costs: measured at start, kept fresh by what rounds then take.

The *shape* (how cost grows with rows and tokens) is calibrated once; its *scale* follows the newest rounds, for
drafting and verifying apart. A length that was slow once, on a busy machine, is so never shunned for good.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from typing import NamedTuple

_SCALE_STEP = 0.05


class CostCurve:
    """Milliseconds of a pass by (rows, tokens a row), interpolated between calibrated points."""

    def __init__(self, points_ms: dict[tuple[int, int], float]) -> None:
        """Calibrated points; every row count needs the same token counts.

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
            # A pass over fewer tokens never costs more, and noise only ever adds: so trust the cheaper neighbour.
            for tokens in reversed(self._tokens):
                ceiling_ms = min(ceiling_ms, points_ms[rows, tokens])
                self._points_ms[rows, tokens] = ceiling_ms
        self.scale = 1.0
        self._calibrated_ms = cache(self._interpolated_ms)
        """Asked for a dozen times a round, and always the same."""

    def ms(self, rows: int, tokens: int) -> float:
        """Expected milliseconds."""
        return self.scale * self._calibrated_ms(rows, tokens)

    def observe(self, rows: int, tokens: int, took_ms: float) -> None:
        """Follow what a round took; outliers count no more than a factor of two."""
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
    """What one drafter takes."""

    draft: CostCurve
    """By (rows, speculation length), of rows the drafter has read up to the last round."""
    reading: CostCurve
    """By (1, tokens): what a drafter has to read first of a query that is new to it, or that it was not asked about."""


class Costs(NamedTuple):
    """What the parts of a round take."""

    verify: CostCurve
    """By (rows, tokens a row)."""
    arms: tuple[ArmCosts, ...]
    """One for each of an engine's drafters."""


def _bracket(grid: list[int], value: int) -> tuple[int, int, float]:
    """The grid points around a value, and how far it lies between them (beyond 1 past the grid's end)."""
    if len(grid) == 1:
        return grid[0], grid[0], 0.0
    upper = min(max(bisect_left(grid, value), 1), len(grid) - 1)
    low, high = grid[upper - 1], grid[upper]
    return low, high, max((value - low) / (high - low), 0.0)
