"""Builds the deltas that clients receive."""

from __future__ import annotations

from typing import NamedTuple

from osd.engine.sequence import Sequence
from osd.records.outcome import Round
from osd.records.query import FinishReason, QueryStats, TokenDelta, TokenLogprob
from osd.verify.top_logprobs import TopLogprobs


class Said(NamedTuple):
    """A query's new tokens, and the log-probabilities that its client asked for."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    round: Round | None = None

    @classmethod
    def of(cls, sequence: Sequence, tokens: list[int], top: TopLogprobs | None, round_: Round | None) -> Said:
        """Of tokens that a query commits in a round.

        Args:
            sequence: the query.
            tokens: the committed tokens.
            top: their log-probabilities, if anybody asked.
            round_: the round; None for the token from prefill.
        """
        asked = sequence.request.params.logprobs
        if top is None or asked is None:
            return cls(tuple(tokens), (), round_)
        return cls(tuple(tokens), top.cut(len(tokens), asked).for_client(tokens), round_)

    def delta(self, sequence: Sequence) -> TokenDelta:
        """The delta of a query that continues, with all text that is complete by now."""
        return TokenDelta(
            request_id=sequence.request.request_id,
            token_ids=self.tokens,
            text=sequence.text.take(),
            logprobs=self.logprobs,
            round=self.round,
        )

    def last_delta(self, sequence: Sequence, reason: FinishReason, stats: QueryStats, error: str | None) -> TokenDelta:
        """The last delta of a query, with all text that was held back."""
        return TokenDelta(
            request_id=sequence.request.request_id,
            token_ids=self.tokens,
            text=sequence.text.take(final=True),
            logprobs=self.logprobs,
            finish_reason=reason,
            stopped_by=sequence.stopped_by if reason == "stop" else None,
            error=error,
            stats=stats,
            round=self.round,
        )


NOTHING = Said()
