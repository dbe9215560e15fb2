"""What one decoding row allows of speculation, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from osd.speculation.arm import Arm
from osd.speculation.depth_acceptance import RowAcceptance


@dataclass(slots=True)
class RowHistory:
    """One arm's past in one row."""

    acceptance: RowAcceptance = field(default_factory=RowAcceptance)
    num_read: int = 0
    """Tokens of the row that the drafter knew when it was last asked."""


@dataclass(slots=True)
class RowBudget:
    """What a row may propose, and how each arm's proposals have fared in it."""

    limit: int = 0
    """The most that it may propose now."""
    fixed: int | None = None
    """The length that its client fixed."""
    num_tokens: int = 0
    """Known ones, all of which a drafter reads before it proposes."""
    histories: dict[Arm, RowHistory] = field(default_factory=dict)

    def of(self, arm: Arm) -> RowHistory:
        """What is known of an arm here."""
        if (known := self.histories.get(arm)) is None:
            known = self.histories[arm] = RowHistory()
        return known
