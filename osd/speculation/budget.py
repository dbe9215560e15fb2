"""The limits of one decoding row's speculation, and its history."""

from __future__ import annotations

from dataclasses import dataclass, field

from osd.records.proposal import NO_OFFER, Offer
from osd.speculation.arm import Arm
from osd.speculation.depth_acceptance import RowAcceptance
from osd.speculation.lookup_arm import LookupArm


@dataclass(slots=True)
class RowHistory:
    """One arm's history in one row."""

    acceptance: RowAcceptance = field(default_factory=RowAcceptance)
    num_read: int = 0
    """Number of the row's tokens that the drafter has processed."""


@dataclass(slots=True)
class RowBudget:
    """How many tokens a row may propose, and its acceptance by arm."""

    limit: int = 0
    """Most tokens that it may propose now."""
    fixed: int | None = None
    """The length that its client fixed, if any."""
    num_tokens: int = 0
    """Number of known tokens, all of which a drafter processes before it proposes."""
    offer: Offer = NO_OFFER
    """What the lookup offers in this round."""
    promised: float = 0.0
    """Number of accepted tokens that the lookup promises in this round."""
    prefers_lookup: bool = False
    """Its traffic is new to the drafters, so that what they promise is worth less."""
    own: Arm | None = None
    """The drafter of its domain, if that has one of its own."""
    histories: dict[Arm | LookupArm, RowHistory] = field(default_factory=dict)

    def of(self, arm: Arm | LookupArm) -> RowHistory:
        """An arm's history in this row."""
        if (known := self.histories.get(arm)) is None:
            known = self.histories[arm] = RowHistory()
        return known

    def forget(self, arm: Arm) -> None:
        """Let go of an arm that has left the engine."""
        self.histories.pop(arm, None)
        if self.own is arm:
            self.own = None

    def arm(self, chosen: Arm) -> Arm:
        """The arm that proposes for this row if `chosen` is chosen for all: it, or the domain's own in its place."""
        own = self.own
        return own if own is not None and own.base is chosen and not own.is_broken else chosen

    def factor(self, arm: Arm) -> float:
        """A drafter's expected acceptance in this row and round, relative to its average."""
        kind = arm.kind(self.promised)
        return self.of(arm).acceptance.factor * (1.0 if kind is None else kind.factor)
