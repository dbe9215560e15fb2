"""Torch tensors in and out of the compiled kernels (`osd.models.cpu_kernels`), for passes of a few positions.

Shapes: as there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from osd.models.flat_cache import FlatCache
from osd.models.slot_cache import PassWindow

_log = logging.getLogger(__name__)
_FEW_NEW, _MOST_NEW, _SHORT = 4, 8, 512
"""New positions of a row up to which these kernels are as fast as torch's attention: at any length, at short ones."""
FEWEST_VECTORS = 4
"""oneDNN's products with one or two vectors take longer than with four (docs/decisions.md)."""
_PARALLEL_VECTORS = 8
_PARALLEL_KEYS = 1024
"""Query positions times positions seen from which several cores are faster than one."""
_EVERYWHERE = 2**40


def fits(like: Tensor) -> bool:
    """Whether the kernels can run on tensors of this device and dtype."""
    return like.device.type == "cpu" and like.dtype in (torch.bfloat16, torch.float32) and _kernels() is not None


class _Kernel:
    """One of the compiled functions, on one core or on several.

    Args:
        name: of the function.
        nothing: arguments of the types that it will have, with no rows: it is compiled now, not while someone waits.
    """

    def __init__(self, name: str, *nothing: object) -> None:
        self.serial: Callable[..., None] = getattr(_kernels(), name)
        self._parallel: Callable[..., None] = getattr(_kernels(), f"{name}_parallel")
        self.serial(*nothing)
        if _most_threads() > 1:
            num_threads = torch.get_num_threads()
            self._parallel(*nothing)
            torch.set_num_threads(num_threads)  # when numba starts its threads, it sets OpenMP's number to all cores

    def parallel(self, *args: object) -> None:
        """On as many cores as torch may use, if they can be its own."""
        num_threads = min(torch.get_num_threads(), _most_threads())
        if num_threads == 1:
            self.serial(*args)
            return
        numba = _numba()
        numba.set_num_threads(num_threads)
        self._parallel(*args)


class CpuRowOps:
    """See `RowOps`; for tensors of one dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        none, weight = _array(torch.empty(0, 2, dtype=dtype)), _array(torch.empty(2, dtype=dtype))
        self._norm, self._gate = _Kernel("rms_norm", none, weight, 1e-6, none), _Kernel("silu_gate", none, none)

    def norm(self, x: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        """See `RowOps`."""
        out = x.new_empty(x.shape)
        size = x.shape[-1]
        x_RH = _array(x).reshape(-1, size)
        run = self._norm.serial if len(x_RH) < _PARALLEL_VECTORS else self._norm.parallel
        run(x_RH, _array(weight_H), eps, _array(out).reshape(-1, size))
        return out

    def gate(self, gate_up: Tensor) -> Tensor:
        """See `RowOps`."""
        *leading, both = gate_up.shape
        out = gate_up.new_empty((*leading, both // 2))
        gate_up_RI = _array(gate_up).reshape(-1, both)
        run = self._gate.serial if len(gate_up_RI) < _PARALLEL_VECTORS else self._gate.parallel
        run(gate_up_RI, _array(out).reshape(-1, both // 2))
        return out


class CpuAttention:
    """Attention of a pass over the slot cache, layer by layer; `begin` says which pass.

    Args:
        cache: where keys and values are kept.
        cos_LD: cosines by position.
        sin_LD: signed sines by position.
        num_heads: N.
        scale: of the scores.
        reaches: by layer, how many positions back a query looks, with its own; None: all.
    """

    def __init__(
        self,
        cache: FlatCache,
        cos_LD: Tensor,
        sin_LD: Tensor,
        *,
        num_heads: int,
        scale: float,
        reaches: Sequence[int | None],
    ) -> None:
        self._layers = list(_array(cache.all))
        self._rotation = cos_LD.float().numpy(), sin_LD.float().numpy()
        self._num_heads, self._scale = num_heads, np.float32(scale)
        self._head_size = cos_LD.shape[-1]
        self._reaches = [_EVERYWHERE if reach is None else reach for reach in reaches]
        none, places = _array(torch.empty(0, 1, 1, self._head_size, dtype=cos_LD.dtype)), np.zeros(0, dtype=np.int64)
        options = self._reaches[0], self._scale
        self._kernel = _Kernel("attend", none, *self._rotation, self._layers[0], 0, places, places, *options, none)

    def suits(self, window: PassWindow) -> bool:
        """Whether this is the faster way to attend in a pass (docs/decisions.md has the measurements)."""
        most = _MOST_NEW if min(window.num_seen, max(self._reaches)) <= _SHORT else _FEW_NEW
        return window.starts is not None and window.num_new <= most

    def begin(self, window: PassWindow, firsts: Sequence[int] | None = None) -> None:
        """The next pass; `firsts`: by row, the first position that may be looked at."""
        assert window.starts is not None
        self._shape = window.num_rows, window.num_new
        self._first_row = window.first_row
        self._starts_B = np.array(window.starts, dtype=np.int64)
        self._firsts_B = np.zeros_like(self._starts_B) if firsts is None else np.array(firsts, dtype=np.int64)
        is_little = window.num_rows * window.num_new * window.num_seen < _PARALLEL_KEYS
        self._attend = self._kernel.serial if is_little else self._kernel.parallel

    def __call__(self, layer: int, heads: Tensor) -> Tensor:
        """`[R, X * D]` to `[R, N * D]`, R at least B * Q; what is beyond is zero."""
        num_rows, num_new = self._shape
        num_real, size = num_rows * num_new, self._num_heads * self._head_size
        out = heads.new_empty((len(heads), size))
        if num_real < len(heads):
            out.zero_()
        self._attend(
            _array(heads)[:num_real].reshape(num_rows, num_new, -1, self._head_size),
            *self._rotation,
            self._layers[layer],
            self._first_row,
            self._starts_B,
            self._firsts_B,
            self._reaches[layer],
            self._scale,
            _array(out)[:num_real].reshape(num_rows, num_new, self._num_heads, self._head_size),
        )
        return out


def _array(tensor: Tensor) -> NDArray[Any]:
    """The same memory; numpy has no bfloat16, so that its bits stand for it."""
    array: NDArray[Any] = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor.detach()).numpy()
    return array


@cache
def _kernels() -> Any:
    """The compiled kernels, or None where numba does not run."""
    try:
        from osd.models import cpu_kernels
    except (ImportError, RuntimeError) as error:  # not installed, too old for this numpy, nowhere to keep its cache
        _log.warning("decoding will be slower: numba cannot be used (%s)", str(error).splitlines()[0])
        return None
    return cpu_kernels


@cache
def _numba() -> Any:
    import numba

    return numba


@cache
def _most_threads() -> int:
    """With numba's OpenMP layer the threads are torch's own, which wait spinning: others would have to share cores."""
    try:
        import_module("numba.np.ufunc.omppool")
    except ImportError:
        return 1
    _numba().config.THREADING_LAYER = "omp"
    return int(_numba().config.NUMBA_NUM_THREADS)
