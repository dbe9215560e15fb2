"""The Protocol of a lookup: a drafter without weights, cheap enough to be asked before anything is drafted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from osd.records.drafter_id import DrafterId
from osd.records.proposal import Offer, RowText


class Lookup(Protocol):
    """Finds tokens that may follow a row's text, in microseconds and on the host.

    It is asked before the arm of each row is chosen, so it is chosen only where it has found something. Rows are the
    engine's row numbers 0..B-1.
    """

    id: DrafterId

    def offers(self, rows: Sequence[RowText], max_tokens: int) -> list[Offer]:
        """Up to `max_tokens` tokens for each of the rows 0, 1, …

        Args:
            rows: their text; a row's text is the one of the last call and what was committed since, until `reset_row`.
            max_tokens: most tokens offered to a row.
        """
        ...

    def reset_row(self, row: int) -> None:
        """Begin a new query in a row."""
        ...

    def swap_rows(self, row: int, other: int) -> None:
        """Exchange the state of two rows."""
        ...
