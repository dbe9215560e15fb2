"""An arm: one drafter of an engine, with its costs and its acceptance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from osd.ports.drafter import Drafter
from osd.speculation.cost import ArmCosts
from osd.speculation.depth_acceptance import AcceptanceModel, RowAcceptance
from osd.speculation.lookup_arm import LookupArm
from osd.speculation.watch import SwapWatch

_KINDS = 3
_KEPT = 0.99
_FIRST_ACCEPTED = 3.0
"""A drafter is first taken to be half as good again there as on average: chosen too often it shows how good it is,
which it cannot if it is chosen too rarely."""


def _kinds() -> list[RowAcceptance]:
    return [RowAcceptance(accepted=_FIRST_ACCEPTED, kept=_KEPT) for _ in range(_KINDS)]


@dataclass(slots=True, eq=False)
class Arm:
    """One drafter to choose among. As in the bandit literature, an arm's value is learnt by choosing it."""

    drafter: Drafter
    costs: ArmCosts
    acceptance: AcceptanceModel
    watch: SwapWatch
    is_broken: bool = False
    """Its drafter raised; it is not used until other weights are swapped in."""
    kinds: list[RowAcceptance] = field(default_factory=_kinds)
    """Its acceptance where the lookup promises 1 to 2, 2 to 3, or more tokens for the same row. Where a text repeats
    itself, a drafter is right more often as well, so its average would be too low a bar for the lookup."""
    idle_rounds: int = 0
    """Rounds since it was last chosen."""
    probe_ms: float = 0.0
    """Time that its recent probes added to a round; after a pause a drafter has much to process."""
    base: Arm | None = None
    """Of a domain's own drafter: the arm whose place it takes in the rows of its domain."""

    def kind(self, promised: float) -> RowAcceptance | None:
        """Its acceptance in rounds in which the lookup promises about so many accepted tokens; None below one."""
        return self.kinds[min(int(promised), _KINDS) - 1] if promised >= 1.0 else None

    @property
    def name(self) -> str:
        """The drafter's name, whatever version it has."""
        return self.drafter.id.name

    def wants_rounds(self, queries: Iterable[str]) -> bool:
        """Whether rounds of these queries would help to judge its version; see `SwapWatch`."""
        return self.watch.wants_rounds(self.drafter.id.version, queries)

    def observe(self, query: str, domain: str, first_accepted: bool) -> None:
        """Add one row's round with at least one proposed token to the evidence on its version."""
        self.watch.observe(self.drafter.id.version, query, first_accepted, domain)


class Choice(NamedTuple):
    """The arm and the speculation length for one row in one round."""

    arm: Arm | LookupArm | None
    length: int


PLAIN = Choice(None, 0)
"""No proposal: plain decoding."""
