"""Drafters that come with the package, so that a newcomer's first answer is already drafted.

They are files of `osd/drafters/portable.py`, named by target and kind, each with a card beside it that says what it was
distilled on and how good it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from osd.config.paths import slug
from osd.drafters.portable import PortableDrafter, read_drafter
from osd.drafters.weights import check_state
from osd.records.errors import WeightsRefusedError

_log = logging.getLogger(__name__)
SHIPPED_WEIGHTS = Path(__file__).parent / "shipped_weights"


def find_shipped(
    target_id: str,
    kind: str,
    shapes: Mapping[str, Any],
    state: Mapping[str, Tensor],
    folder: Path | None = None,
) -> PortableDrafter | None:
    """The drafter that is shipped for a target, if it has the shapes that are asked for. The log says why it has not.

    Args:
        target_id: what clients call the target.
        kind: of drafter.
        shapes: the configuration that a new drafter would have.
        state: its weights.
        folder: where to look; None: `SHIPPED_WEIGHTS`.
    """
    path = (folder or SHIPPED_WEIGHTS) / f"{slug(target_id)}.{kind}.safetensors"
    if not path.exists():
        return None
    try:
        shipped = read_drafter(path)
        if difference := shipped.difference(target_id, kind, shapes):
            _log.info("the shipped drafter %s is not used: %s", path, difference)
            return None
        check_state(shipped.state, state)
    except WeightsRefusedError as error:
        _log.warning("the shipped drafter %s is not used: %s", path, error)
        return None
    return shipped
