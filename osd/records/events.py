"""Events for the operator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

EventKind = Literal[
    "publish",
    "refuse",
    "swap",
    "confirm",
    "roll_back",
    "pin",
    "unpin",
    "merge",
    "restart",
    "pause",
    "resume",
    "kernels",
    "error",
    "gap",
    "drift",
    "alert",
    "acknowledge",
    "silence",
    "dead_letter",
    "audit",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event, as shown on the admin page."""

    at_s: float
    """Wall clock, seconds since the epoch."""
    kind: EventKind
    message: str
    data: dict[str, Any] = field(default_factory=dict)
