"""The same memory as a tensor of torch and as an array of numpy.

On a CPU compiled loops hand arrays on: right after a pass, of which the processor's caches are full, each operation of
torch costs tens of microseconds.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers: TypeAlias = Tensor | NDArray[Any]


def array(numbers: Numbers) -> NDArray[Any]:
    """As an array; numpy has no bfloat16, so that its bits stand for it, as uint16."""
    if isinstance(numbers, np.ndarray):
        return numbers
    viewed: NDArray[Any] = (numbers.view(torch.uint16) if numbers.dtype == torch.bfloat16 else numbers.detach()).numpy()
    return viewed


def tensor(numbers: Numbers) -> Tensor:
    """The other way round."""
    if isinstance(numbers, Tensor):
        return numbers
    found = torch.from_numpy(numbers)
    return found.view(torch.bfloat16) if found.dtype == torch.uint16 else found


def is_on_host(numbers: Numbers) -> bool:
    """Whether reading it waits for no device."""
    return isinstance(numbers, np.ndarray) or numbers.device.type == "cpu"
