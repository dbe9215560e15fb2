"""Drafters that come with the package, so that a newcomer's first answer is already drafted.

They are files of `osd/drafters/portable.py`, named by target and kind, each with a card beside it that says what it was
distilled on and how good it is.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from osd.drafters.portable import PortableDrafter, read_drafter
from osd.store_paths import slug
from osd.types import WeightsRefusedError

_log = logging.getLogger(__name__)
SHIPPED_WEIGHTS = Path(__file__).parent / "shipped_weights"


def find_shipped(
    target_id: str, kind: str, shapes: dict[str, Any], folder: Path = SHIPPED_WEIGHTS
) -> PortableDrafter | None:
    """The drafter that is shipped for a target, if it has the shapes that are asked for.

    Args:
        target_id: what clients call the target.
        kind: of drafter.
        shapes: the configuration that a new drafter would have.
        folder: where to look.
    """
    path = folder / f"{slug(target_id)}.{kind}.safetensors"
    if not path.exists():
        return None
    try:
        shipped = read_drafter(path)
    except WeightsRefusedError as error:
        _log.warning("the shipped drafter is not used: %s", error)
        return None
    differing = sorted(name for name in shapes if shapes[name] != shipped.config.get(name))
    if differing:
        _log.info("the shipped drafter is not used: it has another %s than is asked for", ", ".join(differing))
        return None
    return shipped
