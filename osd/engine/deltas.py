"""What a client is told of its query after a step."""

from __future__ import annotations

from typing import NamedTuple

from osd.engine.sequence import Sequence
from osd.records.query import FinishReason, QueryStats, TokenDelta, TokenLogprob
from osd.verify.top_logprobs import TopLogprobs


class Said(NamedTuple):
    """New tokens, and the log-probabilities that the client asked for."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()

    @classmethod
    def of(cls, sequence: Sequence, tokens: list[int], top: TopLogprobs | None) -> Said:
        """What one query committed."""
        asked = sequence.request.params.logprobs
        if top is None or asked is None:
            return cls(tuple(tokens))
        return cls(tuple(tokens), top.cut(len(tokens), asked).for_client(tokens))

    def delta(self, sequence: Sequence) -> TokenDelta:
        """With the text that is complete by now; the query goes on."""
        return TokenDelta(
            request_id=sequence.request.request_id,
            token_ids=self.tokens,
            text=sequence.text.take(),
            logprobs=self.logprobs,
        )

    def last_delta(self, sequence: Sequence, reason: FinishReason, stats: QueryStats, error: str | None) -> TokenDelta:
        """With all the text that was held back; the query has ended."""
        return TokenDelta(
            request_id=sequence.request.request_id,
            token_ids=self.tokens,
            text=sequence.text.take(final=True),
            logprobs=self.logprobs,
            finish_reason=reason,
            error=error,
            stats=stats,
        )


NOTHING = Said()
