"""A tile's sums, by every kind of instructions that this processor has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from osd.arrays import array
from osd.models.compiled import amx
from osd.models.compiled.amx import HAS_AMX
from osd.models.compiled.tile import leave, ready, tile_of
from osd.models.compiled.tiling import STEP_BYTES, WIDTH, tiled
from osd.models.compiled.vectors import ROWS

_needs_amx = pytest.mark.skipif(not HAS_AMX, reason="needs a processor with AMX")
_KINDS = [
    pytest.param((torch.float32, False), id="float32"),
    pytest.param((torch.bfloat16, False), id="bfloat16"),
    pytest.param((torch.bfloat16, True), id="bfloat16 by AMX", marks=_needs_amx),
]
_compiled: dict[Any, Callable[..., None]] = {}


def sums(x_RI: Tensor, tile: Tensor, has_amx: bool) -> Tensor:
    """Of these rows, as float32; rows and outputs beyond them stay as they are."""
    is_float32 = x_RI.dtype == torch.float32
    if (is_float32, has_amx) not in _compiled:
        sums_of = tile_of(is_float32=is_float32, has_amx=has_amx)

        @njit
        def run(x: Any, weights: Any, out: Any, num_steps: int) -> None:
            if has_amx:
                ready(x, 0)
            steps = weights.ctypes.data + WIDTH * STEP_BYTES
            sums_of(
                weights.ctypes.data,
                steps,
                x.ctypes.data,
                x.strides[0],
                out.ctypes.data,
                out.strides[0],
                num_steps,
                len(x),
                steps,
            )
            if has_amx:
                leave(x)

        _compiled[is_float32, has_amx] = run
    out = np.full((len(x_RI) + 1, WIDTH + 3), 7.0, np.float32)
    num_steps = x_RI.shape[1] * x_RI.itemsize // STEP_BYTES
    _compiled[is_float32, has_amx](array(x_RI), tile.numpy(), out[: len(x_RI)], num_steps)
    assert (out[len(x_RI) :] == 7.0).all() and (out[:, WIDTH:] == 7.0).all()
    return torch.from_numpy(out[: len(x_RI), :WIDTH])


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("num_inputs", [2, 30, 32, 36, 96, 98])
def test_sums_are_torchs_and_no_row_depends_on_another(kind: tuple[torch.dtype, bool], num_inputs: int) -> None:
    dtype, has_amx = kind
    generator = torch.Generator().manual_seed(num_inputs)
    num_rows = (amx.ROWS if num_inputs % (2 * amx.STEPS) == 0 else amx.REGISTER_ROWS) if has_amx else ROWS
    weight_OI = torch.randn(WIDTH, num_inputs, generator=generator).to(dtype)
    bias_O = torch.randn(WIDTH, generator=generator).to(dtype)
    x_RI = torch.randn(num_rows, num_inputs, generator=generator).to(dtype)
    [tile] = tiled(weight_OI, bias_O)
    together_RO = sums(x_RI, tile, has_amx)
    expected_RO = torch.nn.functional.linear(x_RI.double(), weight_OI.double(), bias_O.double())
    torch.testing.assert_close(together_RO.double(), expected_RO, atol=1e-4, rtol=1e-4)
    for few in (1, num_rows // 2, num_rows // 2 + 1, num_rows - 1):
        assert torch.equal(sums(x_RI[:few], tile, has_amx), together_RO[:few])
