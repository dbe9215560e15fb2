"""Admission, rows and cancellation: which queries are served now.

Decoding queries occupy rows 0 .. D-1 without gaps, so that a pass over them is a view of the cache. The one query in
prefill has row D. When a query ends, its row is exchanged with the last decoding one's, then with the one in prefill,
so that its content ends up among the free rows, where the prefix cache finds it (`osd.engine.rows.prefix_cache`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from osd.config.target import EngineConfig
from osd.engine.sequence import Sequence
from osd.records.errors import QueueFullError

SwapRows = Callable[[int, int, int], None]
"""Exchanges two rows' caches, of which the given number of positions is used."""


class Scheduler:
    """The waiting queue and the rows. Not thread-safe: the engine's thread owns it."""

    def __init__(self, config: EngineConfig, swap_rows: SwapRows) -> None:
        self.config = config
        self.waiting: deque[Sequence] = deque()
        self.prefilling: Sequence | None = None
        self.decoding: list[Sequence] = []
        self._swap_rows = swap_rows

    @property
    def in_rows(self) -> list[Sequence]:
        """The queries that have a row: those decoding, and the one in prefill."""
        return self.decoding if self.prefilling is None else [*self.decoding, self.prefilling]

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.waiting or self.prefilling or self.decoding)

    def submit(self, sequence: Sequence) -> None:
        """Queue a query.

        Raises:
            QueueFullError: too many queries are waiting.
        """
        free = self.config.max_slots - len(self.decoding) - (self.prefilling is not None)
        if len(self.waiting) >= self.config.max_waiting + max(free, 0):
            raise QueueFullError(f"{len(self.waiting)} queries wait already; try again shortly")
        # Behind all of the same priority; most queries have the same, so the search begins at the end.
        place = len(self.waiting)
        while place and self.waiting[place - 1].request.priority > sequence.request.priority:
            place -= 1
        self.waiting.insert(place, sequence)

    def next_prefill(self) -> Sequence | None:
        """The query whose prompt is processed next, with its row; None if none waits or no row is free."""
        if self.prefilling is None and self.waiting and len(self.decoding) < self.config.max_slots:
            self.prefilling = self.waiting.popleft()
            self.prefilling.row = len(self.decoding)
        return self.prefilling

    def start_decoding(self) -> None:
        """The prefill is complete: its query becomes the last decoding row, which it already occupies."""
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
                self.decoding[sequence.row] = last
                self._swap(sequence, last)
            if self.prefilling is not None:
                self._swap(sequence, self.prefilling)
        else:
            self.waiting.remove(sequence)
        sequence.row = -1

    def _swap(self, one: Sequence, other: Sequence) -> None:
        self._swap_rows(one.row, other.row, max(one.num_tokens, other.num_tokens))
        one.row, other.row = other.row, one.row
