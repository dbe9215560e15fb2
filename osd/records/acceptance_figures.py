"""What an engine has measured of a drafter version beside the one before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from osd.records.drafter_id import DrafterId

Verdict = Literal["undecided", "sound", "worse"]
"""On a version that was swapped in: `undecided` while too few rounds tell."""


@dataclass(frozen=True, slots=True)
class AcceptanceFigures:
    """Share of rounds whose first proposed token was accepted.

    Example: `AcceptanceFigures(DrafterId("feature", 4), before=0.61, after=0.22, verdict="worse")`
    """

    drafter: DrafterId
    """The version that serves."""
    before: float
    """Of the version that served before it; 0 where nothing is known of one."""
    after: float
    """Of this one."""
    verdict: Verdict
