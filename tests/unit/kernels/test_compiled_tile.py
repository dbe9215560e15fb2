"""A tile's sums, by every kind of instructions that this processor has, in the blocks of every kind of processor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from llvmlite.binding import get_host_cpu_features
from numba import njit
from torch import Tensor

from osd.kernels.cpu.arrays import array
from osd.kernels.cpu.products import amx
from osd.kernels.cpu.products.amx import HAS_AMX
from osd.kernels.cpu.products.blocking import BLOCKING, BLOCKINGS, Blocking, blocking_for
from osd.kernels.cpu.products.tile import ready, release_registers, tile_of
from osd.kernels.cpu.products.tiling import STEP_BYTES, WIDTH, tiled
from osd.kernels.cpu.products.vectors import compiled_for
from tests.kit.blockings import RUNNABLE

_needs_amx = pytest.mark.skipif(not HAS_AMX, reason="needs a processor with AMX")
_KINDS = [
    *(pytest.param((torch.float32, False, one), id=f"float32, {one.name}") for one in RUNNABLE),
    *(pytest.param((torch.bfloat16, False, one), id=f"bfloat16, {one.name}") for one in RUNNABLE),
    pytest.param((torch.bfloat16, True, BLOCKING), id="bfloat16 by AMX", marks=_needs_amx),
]
_compiled: dict[Any, Callable[..., None]] = {}


def sums(x_RI: Tensor, tile: Tensor, has_amx: bool, blocking: Blocking) -> Tensor:
    """Of these rows, as float32; rows and outputs beyond them stay as they are."""
    is_float32 = x_RI.dtype == torch.float32
    kind = is_float32, has_amx, blocking
    if kind not in _compiled:
        sums_of = tile_of(is_float32=is_float32, has_amx=has_amx, blocking=blocking)

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
                release_registers(x)

        _compiled[kind] = run
    out = np.full((len(x_RI) + 1, WIDTH + 3), 7.0, np.float32)
    num_steps = x_RI.shape[1] * x_RI.itemsize // STEP_BYTES
    _compiled[kind](array(x_RI), tile.numpy(), out[: len(x_RI)], num_steps)
    assert (out[len(x_RI) :] == 7.0).all() and (out[:, WIDTH:] == 7.0).all()
    return torch.from_numpy(out[: len(x_RI), :WIDTH])


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("num_inputs", [2, 30, 32, 36, 96, 98])
def test_sums_are_torchs_and_no_row_depends_on_another(
    kind: tuple[torch.dtype, bool, Blocking], num_inputs: int
) -> None:
    dtype, has_amx, blocking = kind
    generator = torch.Generator().manual_seed(num_inputs)
    num_rows = (amx.ROWS if num_inputs % (2 * amx.STEPS) == 0 else amx.REGISTER_ROWS) if has_amx else blocking.rows
    weight_OI = torch.randn(WIDTH, num_inputs, generator=generator).to(dtype)
    bias_O = torch.randn(WIDTH, generator=generator).to(dtype)
    x_RI = torch.randn(num_rows, num_inputs, generator=generator).to(dtype)
    [tile] = tiled(weight_OI, bias_O)
    together_RO = sums(x_RI, tile, has_amx, blocking)
    expected_RO = torch.nn.functional.linear(x_RI.double(), weight_OI.double(), bias_O.double())
    torch.testing.assert_close(together_RO.double(), expected_RO, atol=1e-4, rtol=1e-4)
    for few in (1, 2, num_rows // 2, num_rows // 2 + 1, num_rows - 1):
        assert torch.equal(sums(x_RI[:few], tile, has_amx, blocking), together_RO[:few])


@pytest.mark.parametrize(
    ("cpu_name", "features", "name"),
    [
        ("skylake-avx512", "+avx512f,-prefer-256-bit", "AVX-512"),
        ("znver4", "+avx512f,+avx512bf16", "AVX512-BF16"),
        ("znver4", "+avx512f, -avx512bf16", "AVX-512"),
        ("znver4", "+avx2,-avx512f", "AVX2"),
        ("znver1", None, "AVX2"),
        ("znver4", None, "AVX2"),  # what numba is not told, only LLVM knows
    ],
)
def test_blocks_are_chosen_by_what_numba_compiles_for(cpu_name: str, features: str | None, name: str) -> None:
    assert blocking_for(compiled_for(cpu_name, features)).name == name


def test_this_processors_blocks_are_chosen_by_its_instructions() -> None:
    features = get_host_cpu_features()
    assert compiled_for(None, None) == features
    expected = "AVX2" if not features["avx512f"] else "AVX512-BF16" if features["avx512bf16"] else "AVX-512"
    assert blocking_for(features).name == expected
    assert len({one.name for one in BLOCKINGS}) == 3
