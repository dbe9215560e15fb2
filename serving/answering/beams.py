"""Beam search without a model: which partial answers are extended, and which finished ones are the best.

A beam's score is the sum of its tokens' log-probabilities divided by (number of tokens) ** length_penalty, as in
transformers' `generate`. Nothing is sampled. A search ends once no running beam can still beat the finished ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from osd.records.query import TokenLogprob


@dataclass(frozen=True, slots=True)
class Beam:
    """A partial or whole answer."""

    tokens: tuple[TokenLogprob, ...] = ()
    """Its tokens with their log-probabilities."""
    logprob: float = 0.0
    """Their sum."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens alone."""
        return tuple(one.token_id for one in self.tokens)

    def extended(self, top: TokenLogprob) -> list[Beam]:
        """This beam followed by each of the most likely next tokens.

        Args:
            top: of the position after this beam; its own token does not matter.
        """
        return [
            Beam((*self.tokens, TokenLogprob(token_id, logprob, top.top)), self.logprob + logprob)
            for token_id, logprob in top.top
        ]

    def score(self, length_penalty: float) -> float:
        """What finished beams are ranked by."""
        return float(self.logprob / len(self.tokens) ** length_penalty)


@dataclass(slots=True, kw_only=True)
class Beams:
    """The beams of one prompt."""

    width: int
    """Number of beams that run, and of answers."""
    max_tokens: int
    """Most tokens of an answer."""
    length_penalty: float
    """Above 0 favours longer answers."""
    end_ids: Collection[int]
    """Tokens that end an answer."""
    running: list[Beam] = field(default_factory=lambda: [Beam()])
    """Most likely first; all of equal length."""
    finished: list[Beam] = field(default_factory=list)
    """At most `width`, best first."""

    @property
    def num_wanted(self) -> int:
        """How many next tokens of each beam have to be known: `width` of them end no answer."""
        return self.width + len(self.end_ids)

    def grow(self, tops: Sequence[TokenLogprob]) -> None:
        """Extend all running beams by one token.

        Args:
            tops: for each running beam, the `num_wanted` most likely next tokens.
        """
        extended = [one for beam, top in zip(self.running, tops, strict=True) for one in beam.extended(top)]
        extended.sort(key=lambda beam: -beam.logprob)
        is_last = len(extended[0].tokens) == self.max_tokens
        # Of the extended beams, only the best may be answers; others of their length are more likely.
        self.finished += [one for one in extended[: self.width] if is_last or self.has_ended(one)]
        self.finished.sort(key=lambda beam: -beam.score(self.length_penalty))
        del self.finished[self.width :]
        self.running = [] if is_last else [one for one in extended if not self.has_ended(one)][: self.width]

    def has_ended(self, beam: Beam) -> bool:
        """Whether its last token ends an answer."""
        return beam.tokens[-1].token_id in self.end_ids

    @property
    def is_over(self) -> bool:
        """Whether no running beam can still become one of the best."""
        if not self.running or len(self.finished) < self.width:
            return not self.running
        best = self.running[0]
        # Its log-probability can only fall; dividing by a larger length raises it towards 0.
        num_tokens = self.max_tokens if self.length_penalty > 0 else len(best.tokens)
        most = best.logprob / num_tokens**self.length_penalty
        return bool(most <= self.finished[-1].score(self.length_penalty))
