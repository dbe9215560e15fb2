"""One way to speculate among which to choose: a drafter, what its proposals cost, and how they fare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from osd.ports.drafter import Drafter
from osd.speculation.cost import ArmCosts
from osd.speculation.depth_acceptance import AcceptanceModel
from osd.speculation.watch import SwapWatch


@dataclass(slots=True, eq=False)
class Arm:
    """One drafter of an engine. As in the bandit literature, an arm's gain is learnt by choosing it."""

    drafter: Drafter
    costs: ArmCosts
    acceptance: AcceptanceModel
    watch: SwapWatch
    is_broken: bool = False
    """It raised: nothing is asked of it until other weights are swapped in."""
    idle_rounds: int = 0
    """Rounds since it was last chosen."""
    probe_ms: float = 0.0
    """What its last probes took beyond a round without: after a pause a drafter has much to read."""

    @property
    def name(self) -> str:
        """That of its drafter, whatever version serves."""
        return self.drafter.id.name


class Choice(NamedTuple):
    """Who proposes for a row in one round, and how many tokens."""

    arm: Arm | None
    length: int


PLAIN = Choice(None, 0)
"""Nothing is proposed: plain decoding."""
