"""A lookup as an arm: its offers, and how far their estimates of what is accepted are right."""

from __future__ import annotations

from collections.abc import Sequence

from osd.ports.lookup import Lookup
from osd.records.proposal import Offer
from osd.speculation.depth_acceptance import RowAcceptance
from osd.speculation.lookup_turns import LookupTurns

_FADE = 0.999
_PRIOR_TOKENS = 16.0


class LookupArm:
    """A lookup to choose among, beside the drafters.

    Offers are judged whether they are proposed or not: what was committed says how far one would have been accepted.
    """

    def __init__(self, lookup: Lookup) -> None:
        self.drafter, self.turns = lookup, LookupTurns()
        self.is_broken = False
        """It raised, and is not asked again."""
        self._accepted = self._expected = _PRIOR_TOKENS

    @property
    def name(self) -> str:
        """The lookup's name."""
        return self.drafter.id.name

    @property
    def factor(self) -> float:
        """Accepted / expected tokens of recent offers; below 1 where they promise too much."""
        return self._accepted / self._expected

    def expected(self, offer: Offer, row: RowAcceptance, limit: int) -> list[float]:
        """Expected number of accepted tokens if the first 0, 1, …, `limit` tokens of an offer are proposed.

        Args:
            offer: may be shorter than `limit`, from where on the number stays.
            row: the row's offers so far.
            limit: most tokens.
        """
        factor, share, before, total = self.factor * row.factor, 1.0, 1.0, [0.0]
        for reach in offer.reach[:limit]:
            share *= min(reach / before * factor, 1.0)
            before = reach
            total.append(total[-1] + share)
        return total + total[-1:] * (limit + 1 - len(total))

    def observe(self, offer: Offer, row: RowAcceptance, committed: Sequence[int]) -> None:
        """Compare an offer with the tokens that its row committed in the same round.

        Those are drawn from the target's distribution whoever proposed, so this also holds for sampled rows.
        """
        num_accepted = offer.num_equal(committed)
        num_examined = min(num_accepted + 1, len(offer.token_ids), len(committed))
        before = 1.0
        for reach in offer.reach[:num_examined]:
            row.expected += reach / before
            self._expected = self._expected * _FADE + reach / before
            self._accepted *= _FADE
            before = reach
        row.accepted += num_accepted
        self._accepted += num_accepted
