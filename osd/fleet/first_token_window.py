"""The newest rounds of a drafter version: how often the first proposed token was accepted, with its variance.

Rounds of one query are correlated. Each query therefore counts with a limited number of rounds, and the number of
rounds is divided by their design effect, which converts it to a number of independent rounds (Rao & Scott 1992,
Biometrics 48).
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

_ROUNDS_A_QUERY = 20
"""Most rounds per query; more would add little information, and displace other queries."""


class Estimate(NamedTuple):
    """A share of rounds, and the variance of that estimate."""

    rate: float
    variance: float


class FirstTokenWindow:
    """The newest queries that together have `num_rounds` rounds.

    Args:
        num_rounds: length of the window.
    """

    def __init__(self, num_rounds: int) -> None:
        self._num_rounds = num_rounds
        self._sizes: Counter[str] = Counter()
        """Rounds by query, oldest query first."""
        self._accepted: Counter[str] = Counter()
        self._total = 0

    def __len__(self) -> int:
        """Number of rounds in the window."""
        return self._total

    @property
    def num_queries(self) -> int:
        """Number of queries with rounds in the window."""
        return len(self._sizes)

    def takes(self, query: str) -> bool:
        """Whether another round of this query would be counted."""
        return self._sizes[query] < _ROUNDS_A_QUERY

    def add(self, query: str, accepted: bool) -> None:
        """Add one round of a query that `takes` accepts."""
        self.put(query, self._sizes[query] + 1, self._accepted[query] + accepted)

    def put(self, query: str, num_rounds: int, num_accepted: int) -> None:
        """Set what is known of a query; putting the same again changes nothing."""
        self._total += num_rounds - self._sizes[query]
        self._sizes[query], self._accepted[query] = num_rounds, num_accepted
        while self._total - self._sizes[oldest := next(iter(self._sizes))] >= self._num_rounds:
            self._total -= self._sizes.pop(oldest)
            del self._accepted[oldest]

    def counts(self) -> dict[str, tuple[int, int]]:
        """Query to (rounds, of these accepted), oldest query first."""
        return {query: (size, self._accepted[query]) for query, size in self._sizes.items()}

    @property
    def rate(self) -> float:
        """Share of rounds whose first token was accepted."""
        return self._accepted.total() / len(self) if self._sizes else 0.0

    def estimate(self, correlation: float) -> Estimate:
        """The rate, with the variance for the effective number of independent rounds.

        One success and one failure are added (Agresti & Caffo 2000, The American Statistician 54); otherwise a few
        rounds with a rate near 1 would have hardly any variance.

        Args:
            correlation: of two rounds of one query.
        """
        design_effect = 1 + correlation * (self._mean_size - 1)
        worth = len(self) / design_effect
        rate = (worth * self.rate + 1) / (worth + 2)
        return Estimate(rate, rate * (1 - rate) / (worth + 2))

    def correlation(self) -> float:
        """The correlation of two rounds of one query, at most 1, by analysis of variance (Ridout et al. 1999,
        Biometrics 55); 0 if the rounds do not allow an estimate.
        """
        num_rounds, num_queries, rate = len(self), len(self._sizes), self.rate
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
        """The mean number of rounds of the query that a random round belongs to."""
        return sum(size * size for size in self._sizes.values()) / len(self)
