"""The acceptance of a drafter version and of the one before it, as an engine measured them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from osd.records.drafter_id import DrafterId

Verdict = Literal["undecided", "sound", "worse"]
"""Of the comparison after a swap: `undecided` until there are enough rounds."""


@dataclass(frozen=True, slots=True)
class AcceptanceFigures:
    """Shares of rounds whose first proposed token was accepted.

    Example: `AcceptanceFigures(DrafterId("feature", 4), before=0.61, after=0.22, verdict="worse")`
    """

    drafter: DrafterId
    """The serving version."""
    before: float
    """Of the version before; 0 if unknown."""
    after: float
    """Of the serving version."""
    verdict: Verdict
