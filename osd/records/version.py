"""The manifest of a drafter version: what is known of it besides its tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

UNTRAINED = "untrained"
"""The note of a first version with random weights."""
MERGED = "merged: "
"""How `WeightManifest.rolled_back` begins where the trainer found the base drafter to be as good for a domain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """The manifest of one drafter version, stored as JSON beside its tensors.

    Example: `WeightManifest(number=3, kind="feature", config={...}, config_hash="9f2c…", parent=2, digest="ab41…",
    training_step=120, stream_position="1700000000000-0", gate={"candidate": 0.31, "serving": 0.24}, created_at_s=…)`
    """

    number: int
    kind: str
    config: dict[str, Any]
    config_hash: str
    parent: int | None
    digest: str
    """SHA-256 of the safetensors file."""
    training_step: int = 0
    stream_position: str = ""
    gate: dict[str, float] = field(default_factory=dict)
    created_at_s: float = 0.0
    note: str = ""
    fence: int = 0
    """Of the training lease under which it was published; 0: without one. See `osd.io.guards.lease`."""
    rolled_back: str = ""
    """Why this version was rolled back; empty if it was not."""

    @property
    def is_origin(self) -> bool:
        """Training may begin with it, and go back to it: the shipped drafter, an untrained one, or one that an operator
        put there and that was not rolled back since.
        """
        return self.parent is None and not self.training_step and not self.rolled_back


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The version that every engine may serve."""

    version: int
    pinned: str = ""
    """Why the operator wants this version to serve whatever is published; empty: newer ones are tried."""
