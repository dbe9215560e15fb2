"""Numbers held as a torch tensor or as a numpy array, and memory for them."""

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
    """A numpy view of a tensor on the host whose dtype numpy has."""
    found: NDArray[Any] = numbers if isinstance(numbers, np.ndarray) else numbers.numpy()
    return found


def tensor(numbers: Numbers) -> Tensor:
    """A torch view."""
    return numbers if isinstance(numbers, Tensor) else torch.from_numpy(numbers)


def aligned(shape: tuple[int, ...], dtype: DTypeLike, *, zeros: bool = False) -> NDArray[Any]:
    """An array that begins at a cache line, since compiled kernels read whole lines.

    Args:
        shape: of the array.
        dtype: of its elements.
        zeros: fill with zeros, which occupy no memory until written (and then 4 KiB pages); else uninitialised.
    """
    kind = np.dtype(dtype)
    num_bytes = math.prod(shape) * kind.itemsize
    size = num_bytes + _LINE_BYTES
    room = np.frombuffer(_untouched(size), np.uint8) if zeros else np.empty(size, np.uint8)
    before = -room.__array_interface__["data"][0] % _LINE_BYTES
    found: NDArray[Any] = room[before : before + num_bytes].view(kind).reshape(shape)
    return found


def zeros_like_type(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of the type and on the device of `like`; on a CPU they occupy no memory until written."""
    if like.device.type != "cpu":
        return torch.zeros(shape, dtype=like.dtype, device=like.device)
    in_bytes = *shape[:-1], shape[-1] * like.dtype.itemsize
    return torch.from_numpy(aligned(in_bytes, np.uint8, zeros=True)).view(like.dtype)


def _untouched(num_bytes: int) -> mmap.mmap:
    """Zero pages that occupy no memory yet; with numpy's huge pages a few numbers would occupy 2 MiB."""
    found = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system without huge pages
        found.madvise(mmap.MADV_NOHUGEPAGE)
    return found


def exchange(one: Any, other: Any) -> None:
    """Swap the elements of two views (arrays or tensors) in place."""
    kept = one.clone() if isinstance(one, Tensor) else one.copy()
    one[...] = other
    other[...] = kept


def is_on_host(numbers: Numbers) -> bool:
    """Whether the numbers can be read without waiting for a device."""
    return isinstance(numbers, np.ndarray) or numbers.device.type == "cpu"
