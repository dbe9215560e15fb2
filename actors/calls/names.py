"""The names of one service's actors in Ray's namespace."""

from __future__ import annotations

import uuid
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ActorNames:
    """Names that no other service uses, since several may share a cluster."""

    engine: str
    distiller: str
    supervisor: str

    @classmethod
    def unique(cls) -> ActorNames:
        """New names."""
        service = uuid.uuid4().hex[:8]
        return cls(f"osd-engine-{service}", f"osd-distiller-{service}", f"osd-supervisor-{service}")
