"""What the actors of one service are called in Ray's namespace."""

from __future__ import annotations

import uuid
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ActorNames:
    """Unique to one service, so that several may share a cluster."""

    engine: str
    distiller: str
    supervisor: str

    @classmethod
    def unique(cls) -> ActorNames:
        """New names."""
        service = uuid.uuid4().hex[:8]
        return cls(f"osd-engine-{service}", f"osd-distiller-{service}", f"osd-supervisor-{service}")
