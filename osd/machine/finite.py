"""Finding and zeroing NaN and infinity in arrays and tensors, also in bfloat16 held as uint16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from osd.machine.arrays import Numbers

_EXPONENT = np.uint16(0x7F80)
"""bfloat16's exponent bits; all of them are set exactly in NaN and infinity."""


def is_finite(numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """Element-wise; uint16 is read as bfloat16's bits (see `osd.machine.arrays`)."""
    is_bfloat16 = numbers.dtype == np.uint16
    finite: NDArray[np.bool_] = (numbers & _EXPONENT) != _EXPONENT if is_bfloat16 else np.isfinite(numbers)
    return finite


def with_zeros(numbers: Numbers) -> Numbers:
    """Replace NaN and infinity by zero. An array that has neither is returned itself, not copied."""
    if isinstance(numbers, Tensor):
        return numbers.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    finite = is_finite(numbers)
    return numbers if finite.all() else np.where(finite, numbers, np.zeros((), numbers.dtype))
