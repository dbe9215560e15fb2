"""Finding where the end of a text occurred before, in the text itself or in others.

A position stands for the tokens before it. Positions are kept sorted by those tokens read backwards, at most
`max_match_tokens` of them: a suffix array (Manber and Myers 1993) of the reversed text. All positions that end in the
same tokens are then neighbours, and bisection finds them. SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975) keeps
the same matches in a suffix tree; the sorted array needs 8 bytes a token where a tree needs some hundreds.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

_FIRST_BOUNDARY = 1 << 31
"""Token ids are smaller. A document begins with a number from here on, unlike that of any other document, so that the
order of two positions never depends on what precedes their documents."""
_NUM_BOUNDARIES = (1 << 31) - 1
_ABOVE_ALL = (1 << 32) - 1
_MAX_PLACES = 64
"""Most occurrences that one proposal looks at."""
_UNSEEN_VOTES = 3.0
"""With 3, as many tokens are accepted as scores say (GSM8K, Spider, MBPP; docs/adaptation.md)."""
_LEAST_PROBABILITY = 0.1
"""Of the whole proposal: it ends before a token that would fall below."""


class SuffixProposal(NamedTuple):
    """What followed before."""

    token_ids: tuple[int, ...]
    score: float
    """How many of them are expected to be accepted: the sum, over the tokens, of the estimated probability that the
    proposal holds up to there."""
    match_tokens: int
    """Length of the longest end of the context that occurred before."""


NOTHING = SuffixProposal((), 0.0, 0)


class SuffixIndex:
    """Documents of token ids, searchable by what precedes a position.

    Appending a token takes one bisection and one insertion into a sorted array of 4-byte numbers, so its time grows
    with the logarithm of the text's length, but for a copy of memory that is small up to some 100,000 tokens.

    Args:
        max_match_tokens: longest match that is told from a longer one.
        half_life_tokens: an occurrence counts half as much for every so many tokens appended after it.
    """

    def __init__(self, max_match_tokens: int = 32, half_life_tokens: float = float("inf")) -> None:
        self._max_match_tokens, self._half_life_tokens = max_match_tokens, half_life_tokens
        self._tokens = array("I")
        self._places = array("I")
        """Positions in `_tokens`, sorted by the tokens before them, the last one first."""
        self._num_documents = 0

    def __len__(self) -> int:
        """Tokens kept, boundaries of documents included."""
        return len(self._tokens)

    @property
    def size_bytes(self) -> int:
        """Memory of both arrays, with what they hold in reserve."""
        return sys.getsizeof(self._tokens) + sys.getsizeof(self._places)

    def begin_document(self) -> None:
        """What is appended from here on does not continue what was appended before."""
        self._tokens.append(_FIRST_BOUNDARY + self._num_documents % _NUM_BOUNDARIES)
        self._num_documents += 1

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append to the current document."""
        for token in token_ids:
            place = len(self._tokens)
            self._tokens.append(token)
            insort(self._places, place, key=self._before)

    def drop_oldest(self, num_tokens: int) -> None:
        """Forget the oldest documents, whole ones, until at least so many tokens are gone or all are."""
        boundaries = np.flatnonzero(np.frombuffer(self._tokens, dtype=np.uint32) >= _FIRST_BOUNDARY)
        later = boundaries[boundaries >= num_tokens]
        dropped = int(later[0]) if len(later) else len(self._tokens)
        places = np.frombuffer(self._places, dtype=np.uint32)
        self._places = array("I", (places[places >= dropped] - np.uint32(dropped)).tobytes())
        self._tokens = self._tokens[dropped:]

    def find(self, context: Sequence[int]) -> tuple[int, list[int]]:
        """Where the longest end of the context occurred before.

        Args:
            context: token ids; only its last `max_match_tokens` count.

        Returns:
            Its length, and the positions of the tokens that followed it, at most `_MAX_PLACES` of them, evenly out of
            all. (0, []) where not even the last token occurred with another after it.
        """
        wanted = array("I", context[: -self._max_match_tokens - 1 : -1])
        near = bisect_left(self._places, wanted, key=self._before)
        beside = self._places[max(near - 1, 0) : near + 1]
        match_tokens = max((_num_common(wanted, self._before(place)) for place in beside), default=0)
        if not match_tokens:
            return 0, []
        matched = wanted[:match_tokens]
        first = bisect_left(self._places, matched, hi=near, key=self._before)
        matched.append(_ABOVE_ALL)
        end = bisect_left(self._places, matched, lo=near, key=self._before)
        return match_tokens, list(self._places[first : end : 1 + (end - first - 1) // _MAX_PLACES])

    def propose(self, context: Sequence[int], max_tokens: int) -> SuffixProposal:
        """What most often followed the longest end of the context that occurred before.

        Token after token, the occurrences that agree with the proposal so far vote with their weights. The estimate
        of each token's probability is its share of the votes, where what was never seen has
        `_UNSEEN_VOTES` votes for a match of one token, half as many for one of two, and so on: few occurrences of a
        short match say little. The match grows with each proposed token.

        Args:
            context: all known tokens; the proposal continues them.
            max_tokens: most tokens proposed.
        """
        match_tokens, places = self.find(context)
        if not match_tokens:
            return NOTHING
        tokens, newest = self._tokens, len(self._tokens)
        places.sort(reverse=True)  # of equal votes, the newest occurrence's token wins
        alive = [(place, 0.5 ** ((newest - place) / self._half_life_tokens)) for place in places]
        proposed: list[int] = []
        probability, score = 1.0, 0.0
        while len(proposed) < max_tokens:
            alive = [(place, weight) for place, weight in alive if place < newest and tokens[place] < _FIRST_BOUNDARY]
            votes: dict[int, float] = {}
            for place, weight in alive:
                votes[tokens[place]] = votes.get(tokens[place], 0.0) + weight
            if not votes:
                break
            best = max(votes, key=votes.__getitem__)
            probability *= votes[best] / (sum(votes.values()) + _UNSEEN_VOTES / (match_tokens + len(proposed)))
            if probability < _LEAST_PROBABILITY:
                break
            proposed.append(best)
            score += probability
            alive = [(place + 1, weight) for place, weight in alive if tokens[place] == best]
        return SuffixProposal(tuple(proposed), score, match_tokens)

    def _before(self, place: int) -> array[int]:
        """The tokens before a position, the last one first."""
        end = place - 1 - self._max_match_tokens
        return self._tokens[place - 1 : end if end >= 0 else None : -1]


def _num_common(one: array[int], other: array[int]) -> int:
    """Length of the longest common beginning."""
    for number, (token, another) in enumerate(zip(one, other, strict=False)):
        if token != another:
            return number
    return min(len(one), len(other))
