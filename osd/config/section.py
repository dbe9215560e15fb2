"""What all sections of the settings have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
