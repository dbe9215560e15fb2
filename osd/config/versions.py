"""Settings of drafter versions: where they are kept, and how engines change to a new one."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from osd.config.section import Section


class StoreConfig(Section):
    """Where drafter versions and the trainer's checkpoint are kept."""

    url: str = Field(
        "",
        description="Folder, or URL that fsspec knows (s3://bucket/osd), which every node reaches; "
        "empty: the state folder.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of fsspec's file system: { endpoint_url = '…' } for S3, say."
    )


class SwapConfig(Section):
    """What happens around a hot swap."""

    poll_interval_s: float = Field(0.5, gt=0, description="How often the supervisor looks for a new version.")
    canary_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the engines that serve a new version first, at least one; default: one of three or more "
        "engines, all of fewer.",
    )
    watch_rounds: int = Field(400, ge=10, description="Rounds after a swap in which a fall of acceptance rolls back.")
    min_rounds: int = Field(20, ge=5, description="Rounds needed on each side before they are compared.")
    roll_back_z: float = Field(3.5, gt=0, description="Standard errors by which acceptance must fall for a roll back.")
