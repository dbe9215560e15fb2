"""Views of the same memory as a torch tensor and as a numpy array, which compiled loops take.

Right after a forward pass, which has filled the processor's caches, each torch operation costs tens of microseconds.
numpy has no bfloat16: within `osd.kernels.cpu`, and nowhere else, uint16 holds its bits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from osd.kernels.cpu.arguments import Array
from osd.machine.arrays import Numbers

_EXPONENT = np.uint16(0x7F80)
"""bfloat16's exponent bits; all of them are set exactly in NaN and infinity."""


def array(numbers: Numbers) -> Array:
    """A numpy view; bfloat16 appears as its bits in uint16."""
    if isinstance(numbers, np.ndarray):
        return numbers
    viewed: Array = (numbers.view(torch.uint16) if numbers.dtype == torch.bfloat16 else numbers.detach()).numpy()
    return viewed


def tensor(numbers: Numbers) -> Tensor:
    """A torch view; uint16 is read as the bits of bfloat16. Undoes `array`."""
    if isinstance(numbers, Tensor):
        return numbers
    found = torch.from_numpy(numbers)
    return found.view(torch.bfloat16) if found.dtype == torch.uint16 else found


def is_finite(numbers: Array) -> Array:
    """Element-wise, bool: neither NaN nor infinite."""
    is_bfloat16 = numbers.dtype == np.uint16
    finite: Array = (numbers & _EXPONENT) != _EXPONENT if is_bfloat16 else np.isfinite(numbers)
    return finite


def with_zeros(numbers: Array) -> Array:
    """Replace NaN and infinity by zero. An array that has neither is returned itself, not copied."""
    finite = is_finite(numbers)
    return numbers if finite.all() else np.where(finite, numbers, np.zeros((), numbers.dtype))
