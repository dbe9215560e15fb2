"""What is kept by row, for the target, the drafter and queries to come: changed together, or not at all."""

from __future__ import annotations

from collections.abc import Iterable

from osd.config.settings import EngineConfig
from osd.engine.prefix_cache import PrefixCache
from osd.engine.sequence import Sequence
from osd.models.target import Target
from osd.ports.drafter import Drafter


class RowCaches:
    """The rows of one engine.

    Args:
        target: the model served.
        drafters: each keeps something by row.
        config: how many rows there are, and whether queries begin with what others have read.
    """

    def __init__(self, target: Target, drafters: list[Drafter], config: EngineConfig) -> None:
        self._target, self._drafters = target, drafters
        self._num_rows, self._prefixes = config.max_slots, PrefixCache(config.max_slots)
        self._prefix_caching = config.prefix_caching

    def adopt(self, target: Target, drafters: list[Drafter], live: Iterable[Sequence]) -> None:
        """Have another target and other drafters keep these rows, with all that is in them.

        Args:
            target: of the same model; the present one where it stays.
            drafters: with the weights of the present ones, in their order; of those that stay, the present ones.
            live: the queries that are being read or decoded.
        """
        if target is not self._target:
            num_tokens = [self._prefixes.num_tokens(row) for row in range(self._num_rows)]
            for sequence in live:
                num_tokens[sequence.row] = max(num_tokens[sequence.row], sequence.num_tokens)
            target.adopt(self._target, num_tokens)
        for drafter, before in zip(drafters, self._drafters, strict=True):
            if drafter is not before:
                drafter.adopt(before)
        self._target, self._drafters = target, drafters

    def begin(self, sequence: Sequence) -> None:
        """Make a query's row ready to read what no row holds of it. All rows from its own on are free."""
        ids = sequence.token_ids
        place = self._prefixes.place(ids, sequence.row)
        if place.source != place.row:
            self._target.copy_row(place.source, place.row, place.num_tokens)
        if place.row != sequence.row:
            used = max(place.num_tokens, self._prefixes.num_tokens(place.row), self._prefixes.num_tokens(sequence.row))
            self.swap(place.row, sequence.row, used)
        self._target.write_tokens(sequence.row, 0, ids)
        for drafter in self._drafters:
            # It reads little, and maybe with other weights than the last query in this row.
            drafter.reset_row(sequence.row)
        sequence.num_cached = sequence.num_reused = place.num_tokens

    def hold(self, sequence: Sequence) -> None:
        """Let others begin with what was read of a query."""
        if self._prefix_caching and sequence.num_cached:
            self._prefixes.hold(sequence.row, sequence.token_ids[: sequence.num_cached])

    def drop(self, sequence: Sequence) -> None:
        """Keep nothing of a query whose keys and values may not be finite."""
        self._prefixes.hold(sequence.row, ())
        self._target.clear_row(sequence.row, 0)

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """Let two rows change places, of which so many positions are used."""
        self._target.swap_rows(row, other, num_tokens)
        for drafter in self._drafters:
            drafter.swap_rows(row, other)
        self._prefixes.swap(row, other)

    def clear(self) -> None:
        """Let nobody begin with what is in a row: a step broke, and it can't be trusted."""
        self._prefixes.clear()
