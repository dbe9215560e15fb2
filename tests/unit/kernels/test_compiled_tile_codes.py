"""A tile's sums where the weights are codes, by every kind of instructions that this processor has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from osd.kernels.cpu.products import amx_codes
from osd.kernels.cpu.products.amx import HAS_AMX
from osd.kernels.cpu.products.blocking import BLOCKING, Blocking
from osd.kernels.cpu.products.codes import BLOCK, rounded, tiled_codes
from osd.kernels.cpu.products.tile_codes import block_sums, tile_of
from osd.kernels.cpu.products.tiling import WIDTH
from tests.kit.blockings import RUNNABLE

_KINDS = [
    *(pytest.param((False, one), id=one.name) for one in RUNNABLE),
    pytest.param(
        (True, BLOCKING), id="AMX", marks=pytest.mark.skipif(not HAS_AMX, reason="needs a processor with AMX")
    ),
]
_compiled: dict[Any, Callable[..., None]] = {}


def _sums(x_RI: Tensor, tile: Tensor, bits: int, kind: tuple[bool, Blocking]) -> Tensor:
    """Of these rows, as float32; rows and outputs beyond them stay as they are."""
    if (bits, kind) not in _compiled:
        sums_of = tile_of(bits, has_amx=kind[0], blocking=kind[1])

        @njit
        def run(x: Any, x_sums: Any, weights: Any, out: Any) -> None:
            sums_of(
                weights.ctypes.data,
                x.ctypes.data,
                x.strides[0],
                x_sums.ctypes.data,
                x_sums.strides[0],
                out.ctypes.data,
                out.strides[0],
                x_sums.shape[1],
                len(x),
            )

        _compiled[bits, kind] = run
    out, x = np.full((len(x_RI) + 1, WIDTH + 3), 7.0, np.float32), x_RI.view(torch.uint16).numpy()
    _compiled[bits, kind](x, block_sums(x), tile.numpy(), out[: len(x_RI)])
    assert (out[len(x_RI) :] == 7.0).all() and (out[:, WIDTH:] == 7.0).all()
    return torch.from_numpy(out[: len(x_RI), :WIDTH])


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("num_blocks", [1, 2, 7])
def test_sums_are_those_of_the_rounded_weights_and_no_row_depends_on_another(
    num_blocks: int, bits: int, kind: tuple[bool, Blocking]
) -> None:
    generator = torch.Generator().manual_seed(num_blocks)
    num_rows, num_inputs = amx_codes.ROWS if kind[0] else kind[1].rows, num_blocks * BLOCK
    weight_OI = torch.randn(WIDTH, num_inputs, generator=generator).bfloat16()
    bias_O = torch.randn(WIDTH, generator=generator).bfloat16()
    sizes_R1 = torch.randn(num_rows, 1, generator=generator).exp()
    x_RI = (sizes_R1 * torch.randn(num_rows, num_inputs, generator=generator)).bfloat16()
    [tile] = tiled_codes(weight_OI, bias_O, bits=bits)
    together_RO = _sums(x_RI, tile, bits, kind)
    expected_RO = torch.nn.functional.linear(x_RI.double(), rounded(weight_OI.float(), bits).double(), bias_O.double())
    assert ((together_RO - expected_RO).abs() <= 2e-4 * sizes_R1).all()
    for few in {1, 2, num_rows // 2, num_rows // 2 + 1, num_rows - 1}:
        for start in (0, num_rows - few):
            assert torch.equal(_sums(x_RI[start : start + few], tile, bits, kind), together_RO[start : start + few])
