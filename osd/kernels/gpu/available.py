"""Whether a device's rounds can be done by our kernels: Triton, and a C compiler that it needs, have to be there."""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec

import torch

_log = logging.getLogger(__name__)


def can_use_kernels(device: torch.device) -> bool:
    """Tried once a device, with the smallest of the kernels."""
    return device.type == "cuda" and find_spec("triton") is not None and _works(device)


@lru_cache
def _works(device: torch.device) -> bool:
    from osd.kernels.gpu.highest import highest

    values_RV = torch.tensor([[1.0, 3.0, 3.0, 2.0]], device=device)
    try:
        is_right = highest(values_RV).tolist() == [1]
    except Exception as error:  # a compiler may fail in any way; torch's operations do the same work
        _log.warning("no kernels on %s, decoding is slower: %s: %s", device, type(error).__name__, error)
        return False
    if not is_right:
        _log.warning("no kernels on %s, decoding is slower: they compute something else", device)
    return is_right
