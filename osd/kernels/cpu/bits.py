"""Elementary operations of compiled kernels; bfloat16, which numba lacks, is stored as its bits in uint16."""

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
    # On many Intel processors LLVM prefers 256-bit vectors, because wide ones used to reduce the clock frequency.
    _config.CPU_FEATURES = f"{get_host_cpu_features().flatten()},-prefer-256-bit"
# The numpy error model does not check for division by zero, which would prevent vectorisation and raise on padding.
inlined = njit(fastmath=True, error_model="numpy", forceinline=True)
"""For functions called from compiled ones: inlined, so the caller's optimisation includes them."""
compiled = njit(error_model="numpy")
"""For functions that are too large to inline everywhere. Such a function's machine code may be its own compilation's or
the stored one of a caller, so it is compiled without fastmath, whose last bits could differ between the two.
"""
compiled_fast = njit(fastmath=True, error_model="numpy")
"""As `compiled`, but with fastmath: for proposals and for distributions that tokens are drawn from, whose last bits may
differ, since greedy answers do not depend on them.
"""


@compiled
def empty_rows(num_rows: int, num_columns: int, like: Array) -> Array:
    """Uninitialised rows of the element type of `like`, each aligned to a cache line if rows are whole cache lines."""
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
    """Convert a float32 to the element type of `like`."""
    raise NotImplementedError("compiled only")  # the overload below takes its place


@overload(narrow, inline="always")
def _narrow(value, like):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as above
    if isinstance(like.dtype, types.Float):
        return lambda value, like: value
    return lambda value, like: _rounded(value)


@inlined
def is_finite(value: np.float32) -> bool:
    """Whether the value is neither NaN nor infinite, by its bits: `fastmath` assumes that no such values exist."""
    exponent = np.int32(0x7F800000)
    return bool((np.float32(value).view(np.int32) & exponent) != exponent)


@njit(inline="always")
def _rounded(value: np.float32) -> Any:
    """Round to bfloat16's bits: to nearest, ties to even."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@njit(fastmath=True, error_model="numpy", inline="always")
def exp(x: np.float32) -> Any:
    """The exponential to float32 accuracy without branches: integer powers of 2 by exponent bits, and a polynomial."""
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
    """The exponential of x <= 0 with a relative error of 3e-6, in two thirds of the time of `exp`."""
    return exp2_below(x * LOG2_E)


@njit(fastmath=True, error_model="numpy", inline="always")
def exp2_below(x: np.float32) -> Any:
    """2 ** x for x <= 0 with a relative error of 3e-6; exactly 1 for x = 0."""
    y = max(x, np.float32(-126.0))
    whole = np.int32(y)  # rounds toward zero, so that the rest is in -1 .. 0
    rest = y - np.float32(whole)
    power = np.float32(6.8325368e-3)
    power = power * rest + np.float32(5.3224843e-2)
    power = power * rest + np.float32(2.3945749e-1)
    power = power * rest + np.float32(6.9306368e-1)
    power = power * rest + np.float32(1.0)
    return np.int32(np.int32(whole << np.int32(23)) + np.float32(power).view(np.int32)).view(np.float32)
