"""Who is served now: admission, rows, cancellation.

Decoding queries hold rows 0 .. D-1, compact, so that a pass over them is a view of the cache; the one query whose
prompt is being read holds row D. When a row falls free, the last decoding row moves into it, and the reading one after.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from osd.config import EngineConfig
from osd.sequence import Sequence
from osd.types import QueueFullError

MoveRow = Callable[[Sequence, int], None]
"""Moves a query's caches to another row; called before `Sequence.row` changes."""


class Scheduler:
    """Queues and rows. Not thread-safe: the engine's thread owns it."""

    def __init__(self, config: EngineConfig, move_row: MoveRow) -> None:
        self.config = config
        self.waiting: deque[Sequence] = deque()
        self.prefilling: Sequence | None = None
        self.decoding: list[Sequence] = []
        self._move_row = move_row

    @property
    def has_work(self) -> bool:
        """True while a step would do something."""
        return bool(self.waiting or self.prefilling or self.decoding)

    def submit(self, sequence: Sequence) -> None:
        """Queue a query.

        Raises:
            QueueFullError: too many wait already.
        """
        free = self.config.max_slots - len(self.decoding) - (self.prefilling is not None)
        if len(self.waiting) >= self.config.max_waiting + max(free, 0):
            raise QueueFullError(f"{len(self.waiting)} queries wait already; try again shortly")
        self.waiting.append(sequence)

    def next_prefill(self) -> Sequence | None:
        """The query whose prompt is read next, with its row; None when none waits or no row is free."""
        if self.prefilling is None and self.waiting and len(self.decoding) < self.config.max_slots:
            self.prefilling = self.waiting.popleft()
            self.prefilling.row = len(self.decoding)
        return self.prefilling

    def start_decoding(self) -> None:
        """The prompt is read: its query joins the decoding rows, where it already stands."""
        assert self.prefilling is not None
        self.decoding.append(self.prefilling)
        self.prefilling = None

    def remove(self, sequence: Sequence) -> None:
        """Free a finished or cancelled query's row, or its place in the queue."""
        if sequence is self.prefilling:
            self.prefilling = None
        elif sequence in self.decoding:
            last = self.decoding.pop()
            if last is not sequence:
                self._move(last, sequence.row)
                self.decoding[sequence.row] = last
            if self.prefilling is not None:
                self._move(self.prefilling, len(self.decoding))
        else:
            self.waiting.remove(sequence)
        sequence.row = -1

    def _move(self, sequence: Sequence, row: int) -> None:
        self._move_row(sequence, row)
        sequence.row = row
