"""Drafters that are part of the package, so that speculation helps from the first answer on.

They are files of `osd/drafters/portable.py`, named by target and kind. The card beside each says on what it was
trained, and how well it drafts.
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
    """The shipped drafter for a target, if there is one with the requested shapes; if not, the log says why.

    Args:
        target_id: the name under which the target is served.
        kind: of drafter.
        shapes: the configuration of the drafter to be replaced.
        state: that drafter's weights.
        folder: where shipped drafters are; None: `SHIPPED_WEIGHTS`.
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
