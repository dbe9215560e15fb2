"""Identifies a drafter's weights: the drafter's name and the version."""

from __future__ import annotations

from typing import NamedTuple


class DrafterId(NamedTuple):
    """The weights that proposed a token.

    Example: `DrafterId("feature", 3)`
    """

    name: str
    """The drafter's name within its engine; also the kind under which its versions are stored."""
    version: int
    """Counted from 1 by the weight store; 0 for a drafter without weights."""
