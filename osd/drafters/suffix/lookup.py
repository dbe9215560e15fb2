"""The `suffix` drafter in serving: offers what followed the same tokens in a query's own text or in earlier answers."""

from __future__ import annotations

from collections.abc import Sequence

from osd.drafters.suffix.pool import AnswerPool
from osd.drafters.suffix.query import SuffixQuery
from osd.records.drafter_id import DrafterId
from osd.records.proposal import NO_OFFER, Offer, RowText


class SuffixLookup:
    """Implements `osd.ports.lookup.Lookup`.

    A row's text is indexed when it is first asked for: 2 to 3 us per token of the prompt, then of each round.

    Args:
        pool: recent answers; it is only read here, and may be added to on another thread.
        num_slots: rows.
    """

    def __init__(self, pool: AnswerPool, num_slots: int) -> None:
        self.id = DrafterId("suffix", 0)
        self.pool = pool
        self._queries: list[SuffixQuery | None] = [None] * num_slots

    def offers(self, rows: Sequence[RowText], max_tokens: int) -> list[Offer]:
        """See `Lookup`."""
        return [self._offer(number, row, max_tokens) for number, row in enumerate(rows)]

    def reset_row(self, row: int) -> None:
        """See `Lookup`."""
        self._queries[row] = None

    def swap_rows(self, row: int, other: int) -> None:
        """See `Lookup`."""
        self._queries[row], self._queries[other] = self._queries[other], self._queries[row]

    def _offer(self, number: int, row: RowText, max_tokens: int) -> Offer:
        query = self._queries[number]
        if query is None:
            query = self._queries[number] = SuffixQuery(self.pool, row.domain, row.prompt_ids)
        query.extend(row.output_ids[query.num_tokens - len(row.prompt_ids) :])
        if max_tokens < 1:
            return NO_OFFER
        proposal = query.propose(max_tokens)
        return Offer(proposal.token_ids, proposal.reach)
