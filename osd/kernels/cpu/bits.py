"""bfloat16 in compiled loops: numba does not know it, so it is handled as the upper half of a float32, in uint16."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite.binding import get_host_cpu_features
from numba import config, njit, types
from numba.extending import overload
from numpy.typing import NDArray

from osd.kernels.cpu.products.vectors import FEATURES

Array = NDArray[Any]
LOG2_E = np.float32(1.4426950408889634)

_config: Any = config
if _config.CPU_FEATURES is None and FEATURES.get("avx512f"):
    # LLVM halves vectors on many Intel processors, once slower after wide ones; products here are wide anyway.
    _config.CPU_FEATURES = f"{get_host_cpu_features().flatten()},-prefer-256-bit"
# numpy's error model: a check for division by zero would keep loops from being vectorised, and garbage must not raise.
inner = njit(fastmath=True, error_model="numpy", forceinline=True)
"""For what is called of compiled functions: it becomes a part of its caller, sums and all."""
apart = njit(error_model="numpy")
"""For what would be there too often. The process that compiles runs such a function as it was compiled by itself, later
ones as it was stored with its caller: so nothing in it is left to the compiler that changes last bits.
"""
loose = njit(fastmath=True, error_model="numpy")
"""Such a function as well, but its last bits may differ: for proposals and for distributions that are drawn from, since
no greedy answer hangs on them.
"""


@apart
def room(num_rows: int, num_columns: int, like: Array) -> Array:
    """For rows of such elements. Where they are whole cache lines, each begins where one does."""
    size, line = num_rows * num_columns, 64 // like.itemsize
    elements = np.empty(size + line, like.dtype)
    before = -elements.ctypes.data % 64 // like.itemsize
    return elements[before : before + size].reshape(num_rows, num_columns)


def widen(stored: Any) -> np.float32:
    """A stored element as float32."""
    raise NotImplementedError("compiled only")  # the overload below takes its place


@overload(widen, inline="always")
def _widen(stored):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - lambdas have no types
    if isinstance(stored, types.Float):
        return lambda stored: stored
    return lambda stored: np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)


def narrow(value: Any, like: Array) -> Any:
    """A float32 as the array's elements are stored."""
    raise NotImplementedError("compiled only")  # the overload below takes its place


@overload(narrow, inline="always")
def _narrow(value, like):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as above
    if isinstance(like.dtype, types.Float):
        return lambda value, like: value
    return lambda value, like: _rounded(value)


@inner
def is_finite(value: np.float32) -> bool:
    """Told from the bits: `fastmath` takes for granted that every float is a number."""
    exponent = np.int32(0x7F800000)
    return bool((np.float32(value).view(np.int32) & exponent) != exponent)


@njit(inline="always")
def _rounded(value: np.float32) -> Any:
    """To bfloat16's bits: to nearest, ties to even."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit(fastmath=True, error_model="numpy", inline="always")
def exp(x: np.float32) -> Any:
    """To float32's accuracy, without a branch: 2 to the whole part by its exponent bits, the rest by a polynomial."""
    y = min(max(x, np.float32(-87.0)), np.float32(88.0)) * LOG2_E
    whole = np.floor(y + np.float32(0.5))
    rest = y - whole
    power = np.float32(1.3333558e-3)
    power = power * rest + np.float32(9.6181291e-3)
    power = power * rest + np.float32(5.5504109e-2)
    power = power * rest + np.float32(2.4022651e-1)
    power = power * rest + np.float32(6.9314718e-1)
    power = power * rest + np.float32(1.0)
    return np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32) * power


@njit(fastmath=True, error_model="numpy", inline="always")
def exp_below(x: np.float32) -> Any:
    """Of a number that is not above 0, to 3e-6 of the result: in two thirds of the time."""
    return exp2_below(x * LOG2_E)


@njit(fastmath=True, error_model="numpy", inline="always")
def exp2_below(x: np.float32) -> Any:
    """Two to the power of a number that is not above 0, likewise; of 0, exactly 1."""
    y = max(x, np.float32(-126.0))
    whole = np.int32(y)  # toward zero, so that the rest is within -1 .. 0
    rest = y - np.float32(whole)
    power = np.float32(6.8325368e-3)
    power = power * rest + np.float32(5.3224843e-2)
    power = power * rest + np.float32(2.3945749e-1)
    power = power * rest + np.float32(6.9306368e-1)
    power = power * rest + np.float32(1.0)
    return np.int32(np.int32(whole << np.int32(23)) + np.float32(power).view(np.int32)).view(np.float32)
