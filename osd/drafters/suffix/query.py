"""The `suffix` drafter's state for one query: proposes from its own text, or from recent answers of its domain."""

from __future__ import annotations

from collections.abc import Iterable

from osd.drafters.suffix.index import SuffixIndex, SuffixProposal
from osd.drafters.suffix.pool import AnswerPool

_CONTEXT_TOKENS = 32


class SuffixQuery:
    """The text of one query so far.

    Args:
        pool: recent answers, which are only read.
        domain: the query's domain.
        prompt_ids: the query's prompt.
    """

    def __init__(self, pool: AnswerPool, domain: str, prompt_ids: Iterable[int]) -> None:
        self._pool, self._domain = pool, domain
        self._own = SuffixIndex(_CONTEXT_TOKENS)
        self._own.begin_document()
        self._tail: list[int] = []
        self.num_tokens = 0
        """Number of known tokens, prompt included."""
        self.extend(prompt_ids)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append the query's next committed tokens."""
        known = list(token_ids)
        self._own.extend(known)
        self.num_tokens += len(known)
        self._tail = [*self._tail, *known][-_CONTEXT_TOKENS:]

    def propose(self, max_tokens: int) -> SuffixProposal:
        """The proposal with the larger expected number of accepted tokens; if equal, that from the query's own text.

        Args:
            max_tokens: most tokens proposed.
        """
        own = self._own.propose(self._tail, max_tokens)
        pooled = self._pool.propose(self._domain, self._tail, max_tokens)
        return pooled if pooled.score > own.score else own
