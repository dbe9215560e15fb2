"""The same memory as a tensor of torch and as an array of numpy.

On a CPU compiled loops hand arrays on: right after a pass, of which the processor's caches are full, each operation of
torch costs tens of microseconds.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

Numbers: TypeAlias = Tensor | NDArray[Any]
_LINE_BYTES = 64


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


def aligned(shape: tuple[int, ...], dtype: DTypeLike, *, zeros: bool = False) -> NDArray[Any]:
    """Room that begins where a cache line of a processor does: compiled loops read whole lines.

    Args:
        shape: of the array.
        dtype: of its elements.
        zeros: else they are anything. Zeros take no memory until they are written, and then by small pages.
    """
    kind = np.dtype(dtype)
    num_bytes = math.prod(shape) * kind.itemsize
    size = num_bytes + _LINE_BYTES
    room = np.frombuffer(_untouched(size), np.uint8) if zeros else np.empty(size, np.uint8)
    before = -room.__array_interface__["data"][0] % _LINE_BYTES
    found: NDArray[Any] = room[before : before + num_bytes].view(kind).reshape(shape)
    return found


def _untouched(num_bytes: int) -> mmap.mmap:
    """Zeros that the system has not given yet. numpy asks it for huge pages, where a few numbers take two megabytes."""
    found = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without huge pages
        found.madvise(mmap.MADV_NOHUGEPAGE)
    return found


def exchange(one: Any, other: Any) -> None:
    """Let the elements of two views, arrays or tensors, change places."""
    kept = one.clone() if isinstance(one, Tensor) else one.copy()
    one[...] = other
    other[...] = kept


def is_on_host(numbers: Numbers) -> bool:
    """Whether reading it waits for no device."""
    return isinstance(numbers, np.ndarray) or numbers.device.type == "cpu"
