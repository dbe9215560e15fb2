"""Which drafter: its name, and the version of its weights."""

from __future__ import annotations

from typing import NamedTuple


class DrafterId(NamedTuple):
    """Names the weights that proposed a token.

    Example: `DrafterId("feature", 3)`
    """

    name: str
    """Of the drafter among an engine's, also the kind that its weight versions are filed by."""
    version: int
    """Counted from 1 by the weight store; a drafter without weights keeps one version for ever."""
