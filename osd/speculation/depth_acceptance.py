"""A drafter's acceptance: by depth for the version, and by row for the query.

Depth d (from 1) is *reached* if the d - 1 proposed tokens before it are accepted; conditional acceptance at d is
accepted / reached. Counts decay exponentially, so the newest rounds have the most weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_FADE = 0.995
_PRIOR_ROUNDS = 8.0
_ROW_PRIOR = 6.0
_DEFAULT_PRIOR = 0.3


@dataclass(slots=True)
class RowAcceptance:
    """The acceptance of one query, or of one kind of rounds, relative to what was expected without knowing which."""

    accepted: float = 0.0
    expected: float = 0.0
    kept: float = 1.0
    """What a round leaves of the weight of those before it."""

    @property
    def factor(self) -> float:
        """Accepted relative to expected; above 1 is better."""
        return (self.accepted + _ROW_PRIOR) / (self.expected + _ROW_PRIOR)

    def add(self, accepted: float, expected: float) -> None:
        """Add one round."""
        self.accepted = self.accepted * self.kept + accepted
        self.expected = self.expected * self.kept + expected


class AcceptanceModel:
    """Conditional acceptance by depth of the serving version."""

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.reset({})

    def reset(self, gate: dict[str, float]) -> None:
        """Start with a new version, from its held-out acceptance (`depth_1`, `depth_2`, …) if the gate measured it."""
        prior = gate.get("depth_1", gate.get("candidate", _DEFAULT_PRIOR))
        self._reached, self._accepted = [], []
        for depth in range(1, self.max_length + 1):
            prior = gate.get(f"depth_{depth}", prior)
            self._reached.append(_PRIOR_ROUNDS)
            self._accepted.append(_PRIOR_ROUNDS * min(max(prior, 0.0), 1.0))

    def by_depth(self) -> list[float]:
        """Conditional acceptance at depths 1, 2, …"""
        return [accepted / reached for accepted, reached in zip(self._accepted, self._reached, strict=True)]

    def expected(self, factors: Sequence[float], limits: Sequence[int]) -> list[list[float]]:
        """For each row, the expected number of accepted tokens at speculation lengths 0, 1, …, `max_length`.

        Args:
            factors: each row's acceptance relative to the average.
            limits: most tokens that each row may propose.
        """
        rates, accepted_by_row = self.by_depth(), []
        for factor, limit in zip(factors, limits, strict=True):
            share, total = 1.0, [0.0]
            for depth, rate in enumerate(rates):
                share = share * min(rate * factor, 1.0) if depth < limit else 0.0
                total.append(total[-1] + share)
            accepted_by_row.append(total)
        return accepted_by_row

    def observe(
        self,
        rows: Sequence[RowAcceptance],
        proposed: Sequence[int],
        accepted: Sequence[int],
        kinds: Sequence[RowAcceptance | None],
    ) -> None:
        """Update the estimates by one round.

        Args:
            rows: each row's acceptance so far.
            proposed: number of proposed tokens of each row.
            accepted: number of accepted tokens of each row.
            kinds: the acceptance so far in rounds like this one of each row; None for ordinary rounds.
        """
        for row, kind, num_proposed, num_accepted in zip(rows, kinds, proposed, accepted, strict=True):
            expected = 0.0
            for depth in range(min(num_proposed, num_accepted + 1)):
                expected += self._accepted[depth] / self._reached[depth]
                self._reached[depth] = self._reached[depth] * _FADE + 1.0
                self._accepted[depth] = self._accepted[depth] * _FADE + (depth < num_accepted)
            if not num_proposed:
                continue
            # Each is compared with what the other explains, so that together they do not count anything twice.
            factor = row.factor
            row.add(num_accepted, expected * (1.0 if kind is None else kind.factor))
            if kind is not None:
                kind.add(num_accepted, expected * factor)
