"""Everything that is stored by row (by target, drafters and prefix cache), changed consistently."""

from __future__ import annotations

from collections.abc import Iterable

from osd.config.target import EngineConfig
from osd.engine.rows.prefix_cache import PrefixCache
from osd.engine.sequence import Sequence
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.ports.lookup import Lookup


class RowCaches:
    """The rows of one engine.

    Args:
        target: the model to serve.
        drafters: those that compute with the target.
        lookups: those that do not.
        config: gives the number of rows, and whether prefixes are reused.
    """

    def __init__(self, target: Target, drafters: list[Drafter], lookups: list[Lookup], config: EngineConfig) -> None:
        self._target, self._drafters, self._lookups = target, list(drafters), lookups
        self._num_rows, self._prefixes = config.max_slots, PrefixCache(config.max_slots)
        self._prefix_caching = config.prefix_caching

    @property
    def _by_row(self) -> list[Drafter | Lookup]:
        """All that has state by row besides the target."""
        return [*self._drafters, *self._lookups]

    def adopt(self, target: Target, drafters: list[Drafter], live: Iterable[Sequence]) -> None:
        """Move all rows to another target and other drafters.

        Args:
            target: of the same model; the present one if it stays.
            drafters: with the present ones' names and weights; the present ones where they stay.
            live: queries in prefill or decoding.
        """
        if target is not self._target:
            num_tokens = [self._prefixes.num_tokens(row) for row in range(self._num_rows)]
            for sequence in live:
                num_tokens[sequence.row] = max(num_tokens[sequence.row], sequence.num_tokens)
            target.adopt(self._target, num_tokens)
        by_name = {drafter.id.name: drafter for drafter in self._drafters}
        for drafter in drafters:
            if drafter is not (before := by_name[drafter.id.name]):
                drafter.adopt(before)
        self._target, self._drafters = target, list(drafters)

    def add(self, drafter: Drafter) -> None:
        """Keep the rows of one more drafter, which has read none yet."""
        self._drafters.append(drafter)

    def remove(self, drafter: Drafter) -> None:
        """Keep a drafter's rows no more."""
        self._drafters.remove(drafter)

    def begin(self, sequence: Sequence) -> None:
        """Prepare a query's row: copy the prefix that it shares with another row. All rows from its own on are free."""
        ids = sequence.token_ids
        place = self._prefixes.place(ids, sequence.row, sequence.request.cache_salt)
        if place.source != place.row:
            self._target.copy_row(place.source, place.row, place.num_tokens)
        if place.row != sequence.row:
            used = max(place.num_tokens, self._prefixes.num_tokens(place.row), self._prefixes.num_tokens(sequence.row))
            self.swap(place.row, sequence.row, used)
        self._target.write_tokens(sequence.row, 0, ids)
        for drafter in self._by_row:
            # The drafter starts over: it needs little, and may have other weights than for the last query in this row.
            drafter.reset_row(sequence.row)
        sequence.num_cached = sequence.num_reused = 0 if sequence.wants_prompt_logprobs else place.num_tokens

    def hold(self, sequence: Sequence) -> None:
        """Offer a query's processed tokens as a prefix to later queries."""
        if self._prefix_caching and sequence.num_cached:
            known = sequence.token_ids[: sequence.num_cached]
            self._prefixes.hold(sequence.row, known, sequence.request.cache_salt)

    def num_kept(self, num_used: int) -> int:
        """Number of tokens that free rows keep for later queries; the first `num_used` rows are in use."""
        return sum(self._prefixes.num_tokens(row) for row in range(num_used, self._num_rows))

    def drop(self, sequence: Sequence) -> None:
        """Do not offer a query's row, whose keys and values may hold NaN or infinity."""
        self._prefixes.hold(sequence.row, ())
        self._target.clear_row(sequence.row, 0)

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """Exchange two rows, of which `num_tokens` positions are in use."""
        self._target.swap_rows(row, other, num_tokens)
        for drafter in self._by_row:
            drafter.swap_rows(row, other)
        self._prefixes.swap(row, other)

    def clear(self) -> None:
        """Do not offer any row, since a failed step may have left them inconsistent."""
        self._prefixes.clear()
