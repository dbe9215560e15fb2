"""In which rounds a lookup is asked: in all where it is used, otherwise in so few that asking costs next to nothing."""

from __future__ import annotations

from math import ceil

_ASK_MS = 0.07
"""What asking takes for a row in a round, whether or not anything is proposed (`benchmarks.suffix_cost`)."""
_SHARE = 0.01
"""Most of the time that asking takes while nothing is proposed."""
_PATIENCE_ROUNDS = 16
"""Rounds in a row that ask, propose nothing and still ask in the next round."""


class LookupTurns:
    """Counts rounds since the lookup was last used.

    With few rows every round asks, since a round takes long in comparison. With many, a target's pass over several
    tokens a row seldom pays, and asking for each row could cost more than the lookup saves.
    """

    def __init__(self) -> None:
        self._num_unused = 0
        """Rounds in a row that asked and did not propose."""
        self._num_skipped = 0
        """Rounds in a row that did not ask."""

    def is_due(self, num_rows: int, round_ms: float) -> bool:
        """Whether the next round should ask.

        Args:
            num_rows: number of decoding rows.
            round_ms: expected duration of a plain round over them.
        """
        every = ceil(num_rows * _ASK_MS / (_SHARE * round_ms)) if self._num_unused >= _PATIENCE_ROUNDS else 1
        if self._num_skipped + 1 < every:
            self._num_skipped += 1
            return False
        self._num_skipped = 0
        return True

    def over(self, *, is_used: bool) -> None:
        """A round is over; `is_used` if the lookup proposed for a row."""
        if not self._num_skipped:
            self._num_unused = 0 if is_used else self._num_unused + 1
