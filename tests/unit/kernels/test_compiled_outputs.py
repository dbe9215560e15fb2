"""What becomes of a tile's sums is what torch makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from osd.kernels.cpu.arrays import array
from osd.kernels.cpu.products import outputs
from osd.kernels.cpu.products.tiling import WIDTH
from osd.kernels.cpu.products.vectors import FEATURES, FLOATS, Code

_intrinsic: Any = intrinsic  # which is called without the first argument of what it decorates
_WAYS = [
    pytest.param(False, id="by whole numbers"),
    pytest.param(
        True, id="by an instruction", marks=pytest.mark.skipif(not FEATURES.get("avx512bf16"), reason="has none")
    ),
]


@njit
def _write(sums_RW: Any, out_RW: Any) -> None:
    outputs.write(sums_RW, out_RW)


@njit
def _add(sums_RW: Any, out_RW: Any) -> None:
    outputs.add(sums_RW, out_RW)


@njit
def _gate(gates_RW: Any, ups_RW: Any, out_RW: Any) -> None:
    outputs.gate(gates_RW, ups_RW, out_RW)


def _sums(seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(seed))


def _in_the_middle(num_columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Outputs, and all that is around them."""
    around = torch.arange(7.0 * (WIDTH + 8)).view(7, -1).to(dtype)
    return around[1:6, 3 : 3 + num_columns], around


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_columns", [WIDTH, WIDTH - 1, 7])
def test_outputs(num_columns: int, dtype: torch.dtype) -> None:
    """Of the last tile there may be fewer; nothing beside them is touched."""
    one, other = _sums(1, 3.0), _sums(2)
    cut = slice(0, num_columns)
    out, around = _in_the_middle(num_columns, dtype)
    expected = around.clone()
    ends = slice(1, 6), slice(3, 3 + num_columns)
    _write(one.numpy(), array(out))
    expected[ends] = one[:, cut].to(dtype)
    assert torch.equal(around, expected)
    _add(other.numpy(), array(out))
    expected[ends] = (expected[ends].float() + other[:, cut]).to(dtype)
    assert torch.equal(around, expected)
    _gate(one.numpy(), other.numpy(), array(out))
    gated = (torch.nn.functional.silu(one.double()) * other.double())[:, cut]
    torch.testing.assert_close(out.double(), gated, atol=1e-7, rtol=1e-5 if dtype == torch.float32 else 2**-8)
    expected[ends] = out
    assert torch.equal(around, expected)


def test_gates_far_from_zero() -> None:
    """Where the exponential would leave float32's range."""
    gates = torch.tensor([-1e4, -90.0, -87.5, -20.0, 0.0, 20.0, 88.5, 1e4]).repeat(5, WIDTH // 8)
    out = np.empty((5, WIDTH), np.float32)
    _gate(gates.numpy(), torch.ones(5, WIDTH).numpy(), out)
    expected = torch.nn.functional.silu(gates.double())
    torch.testing.assert_close(torch.from_numpy(out).double(), expected, atol=1e-30, rtol=1e-5)


@pytest.mark.parametrize("by_instruction", _WAYS)
def test_rounding_is_torchs(by_instruction: bool) -> None:
    """To nearest, and of two that are equally near to the even one."""

    @_intrinsic  # type: ignore[untyped-decorator]  # numba is untyped
    def rounded(typing: Any, source: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            code = Code(builder)
            numbers = code.rounded(code.load(args[0], FLOATS), by_instruction=by_instruction)
            builder.store(numbers, builder.inttoptr(args[1], numbers.type.as_pointer())).align = 2
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), generate

    @njit
    def run(source: Any, out: Any) -> None:
        for start in range(0, len(source), 16):
            rounded(source[start:].ctypes.data, out[start:].ctypes.data)

    bits = torch.arange(0x3F80_0000, 0x3F80_0000 + 2**18, 37, dtype=torch.int32)[: 2**12]
    numbers = torch.cat((bits.view(torch.float32), -bits.view(torch.float32), torch.tensor([0.0, 1.00390625] * 8)))
    numbers = numbers[: len(numbers) // 16 * 16].contiguous()
    out = np.zeros(len(numbers), np.uint16)
    run(numbers.numpy(), out)
    assert torch.equal(torch.from_numpy(out).view(torch.bfloat16), numbers.bfloat16())
