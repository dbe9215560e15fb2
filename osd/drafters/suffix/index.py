"""Finds earlier occurrences of the end of a context, in the same text or in others.

Each position stands for the tokens before it. Positions are sorted by those tokens in reverse order, at most
`max_match_tokens` of them: a suffix array (Manber and Myers 1993) of the reversed text. Positions after equal tokens
are adjacent, and found by bisection. SuffixDecoding (Oliaro et al. 2024, arXiv 2411.04975) stores the same matches in a
suffix tree; the array needs 8 bytes per token, a tree some hundreds.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

_FIRST_BOUNDARY = 1 << 31
"""Above all token ids. Each document begins with a number of its own from here on, so that comparing two positions
never goes beyond the beginnings of their documents."""
_NUM_BOUNDARIES = (1 << 31) - 1
_ABOVE_ALL = (1 << 32) - 1
_MAX_PLACES = 64
"""Most occurrences that a proposal uses."""
_UNSEEN_VOTES = 3.0
"""With 3, scores predict the number of accepted tokens (measured on GSM8K, Spider and MBPP; docs/adaptation.md)."""
_LEAST_PROBABILITY = 0.1
"""A proposal ends before a token that would reduce the probability of the whole proposal below this."""


class SuffixProposal(NamedTuple):
    """A proposal of tokens that followed the same context before."""

    token_ids: tuple[int, ...]
    reach: tuple[float, ...]
    """For each token, the estimated probability that all tokens up to it are accepted."""
    match_tokens: int
    """Length of the longest match of the context's end."""

    @property
    def score(self) -> float:
        """Expected number of accepted tokens."""
        return sum(self.reach)


NOTHING = SuffixProposal((), (), 0)


class SuffixIndex:
    """Documents of token ids, indexed by the tokens before each position.

    Appending a token takes one bisection and one insertion into a sorted array of 4-byte numbers: logarithmic time in
    the text's length, plus a copy of memory that is short up to some 100,000 tokens.

    Args:
        max_match_tokens: matches are compared up to this length.
        half_life_tokens: an occurrence's weight halves with each further this many tokens.
    """

    def __init__(self, max_match_tokens: int = 32, half_life_tokens: float = float("inf")) -> None:
        self._max_match_tokens, self._half_life_tokens = max_match_tokens, half_life_tokens
        self._tokens = array("I")
        self._places = array("I")
        """Positions in `_tokens`, sorted by the reversed tokens before them."""
        self._num_documents = 0

    def __len__(self) -> int:
        """Number of tokens stored, including the documents' boundaries."""
        return len(self._tokens)

    @property
    def size_bytes(self) -> int:
        """Memory of both arrays, including spare capacity."""
        return sys.getsizeof(self._tokens) + sys.getsizeof(self._places)

    def begin_document(self) -> None:
        """Begin a new document; matches do not extend across its beginning."""
        self._tokens.append(_FIRST_BOUNDARY + self._num_documents % _NUM_BOUNDARIES)
        self._num_documents += 1

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append to the current document."""
        for token in token_ids:
            place = len(self._tokens)
            self._tokens.append(token)
            insort(self._places, place, key=self._before)

    def drop_oldest(self, num_tokens: int) -> None:
        """Remove the oldest documents as a whole, until at least this many tokens are removed or none is left."""
        boundaries = np.flatnonzero(np.frombuffer(self._tokens, dtype=np.uint32) >= _FIRST_BOUNDARY)
        later = boundaries[boundaries >= num_tokens]
        dropped = int(later[0]) if len(later) else len(self._tokens)
        places = np.frombuffer(self._places, dtype=np.uint32)
        self._places = array("I", (places[places >= dropped] - np.uint32(dropped)).tobytes())
        self._tokens = self._tokens[dropped:]

    def find(self, context: Sequence[int]) -> tuple[int, list[int]]:
        """The occurrences of the longest end of the context that occurred before.

        Args:
            context: token ids; only its last `max_match_tokens` are used.

        Returns:
            The match's length, and the positions of the tokens that followed it: at most `_MAX_PLACES`, evenly chosen
            among all. (0, []) if not even the last token occurred before another.
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
        """The tokens that most often followed the longest match of the context's end.

        At each token, the occurrences that agree with the proposal so far vote with their weights. A token's estimated
        probability is its share of the votes, where unseen continuations have `_UNSEEN_VOTES` votes for a match of one
        token, half as many for a match of two, and so on, since few occurrences of a short match say little. The match
        grows with each proposed token.

        Args:
            context: all known tokens; the proposal continues them.
            max_tokens: most tokens proposed.
        """
        match_tokens, places = self.find(context)
        if not match_tokens:
            return NOTHING
        tokens, newest = self._tokens, len(self._tokens)
        places.sort(reverse=True)  # newest first: at equal votes, the newest occurrence's token is proposed
        alive = [(place, 0.5 ** ((newest - place) / self._half_life_tokens)) for place in places]
        proposed: list[int] = []
        reach: list[float] = []
        probability = 1.0
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
            reach.append(probability)
            alive = [(place + 1, weight) for place, weight in alive if tokens[place] == best]
        return SuffixProposal(tuple(proposed), tuple(reach), match_tokens)

    def _before(self, place: int) -> array[int]:
        """The tokens before a position, in reverse order."""
        end = place - 1 - self._max_match_tokens
        return self._tokens[place - 1 : end if end >= 0 else None : -1]


def _num_common(one: array[int], other: array[int]) -> int:
    """Length of the longest common prefix."""
    for number, (token, another) in enumerate(zip(one, other, strict=False)):
        if token != another:
            return number
    return min(len(one), len(other))
