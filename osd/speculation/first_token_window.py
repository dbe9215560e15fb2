"""The newest rounds of one drafter version, by query: how often the first proposed token was accepted, and how sure.

Rounds of one query are alike. So a query counts for a few of them only, and rounds are divided by their design
effect, which is how much less they say than as many independent ones (Rao & Scott 1992, Biometrics 48).
"""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

_ROUNDS_A_QUERY = 20
"""More rounds of one query say little, and would push the others out."""


class Estimate(NamedTuple):
    """A share of rounds, and the variance of that estimate."""

    rate: float
    variance: float


class FirstTokenWindow:
    """Keeps the newest `num_rounds` rounds.

    Args:
        num_rounds: the window's length.
    """

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self._rounds: deque[tuple[str, bool]] = deque()
        self._sizes: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()

    def __len__(self) -> int:
        """Rounds that it holds."""
        return len(self._rounds)

    @property
    def num_queries(self) -> int:
        """Queries whose rounds it holds."""
        return len(self._sizes)

    def takes(self, query: str) -> bool:
        """Whether another round of this query would count."""
        return self._sizes[query] < _ROUNDS_A_QUERY

    def add(self, query: str, accepted: bool) -> None:
        """One round of a query that counts."""
        if len(self._rounds) == self._num_rounds:
            oldest, was_accepted = self._rounds.popleft()
            self._sizes[oldest] -= 1
            self._accepted[oldest] -= was_accepted
            if not self._sizes[oldest]:
                del self._sizes[oldest], self._accepted[oldest]
        self._rounds.append((query, accepted))
        self._sizes[query] += 1
        self._accepted[query] += accepted

    @property
    def rate(self) -> float:
        """Share of accepted rounds."""
        return self._accepted.total() / len(self._rounds) if self._rounds else 0.0

    def estimate(self, correlation: float) -> Estimate:
        """The rate, of as many independent rounds as these are worth.

        One success and one failure are added (Agresti & Caffo 2000, The American Statistician 54): without them, a few
        rounds at a rate near 1 would seem to be certain.

        Args:
            correlation: of two rounds of one query.
        """
        design_effect = 1 + correlation * (self._mean_size - 1)
        worth = len(self._rounds) / design_effect
        rate = (worth * self.rate + 1) / (worth + 2)
        return Estimate(rate, rate * (1 - rate) / (worth + 2))

    def correlation(self) -> float:
        """Of two rounds of one query, at most 1: the analysis-of-variance estimate (Ridout et al. 1999, Biometrics 55).

        0 where rounds tell nothing of it.
        """
        num_rounds, num_queries, rate = len(self._rounds), len(self._sizes), self.rate
        if num_queries < 2 or num_rounds == num_queries:
            return 0.0
        rates = {query: self._accepted[query] / size for query, size in self._sizes.items()}
        between = sum(size * (rates[query] - rate) ** 2 for query, size in self._sizes.items()) / (num_queries - 1)
        within = sum(size * rates[query] * (1 - rates[query]) for query, size in self._sizes.items())
        within /= num_rounds - num_queries
        size = (num_rounds - self._mean_size) / (num_queries - 1)
        spread = between + (size - 1) * within
        return (between - within) / spread if spread else 0.0

    @property
    def _mean_size(self) -> float:
        """Of the query that a round belongs to."""
        return sum(size * size for size in self._sizes.values()) / len(self._rounds)
