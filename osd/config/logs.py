"""Settings of the log."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from osd.config.section import Section


class LogConfig(Section):
    """One log of all processes: of this machine, or in a cluster of all replicas."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged; the terminal shows warnings and errors only, unless 'debug'."
    )
    format: Literal["text", "json"] = Field("text", description="'json' writes an object a line.")
    file: str = Field(
        "", description="Where to; empty: logs/osd.log in the state folder (in a cluster, on the supervisor's node)."
    )
    max_bytes: int = Field(
        32 << 20, ge=1 << 16, description="A file that has grown so large is renamed to .1, in place of an earlier one."
    )
