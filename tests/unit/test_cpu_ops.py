"""The compiled kernels against torch's operations, which compute the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import osd.models.cpu_kernels as cpu_kernels
import osd.models.cpu_ops as cpu_ops
from osd.models.attention import SdpaAttention
from osd.models.cpu_ops import CpuAttention, CpuRowOps
from osd.models.flat_cache import FlatCache
from osd.models.rotary import rotation
from osd.models.row_ops import TorchRowOps
from osd.models.slot_cache import PassWindow

_EPS = 1e-5
_SLOTS, _LEN, _KEY_HEADS, _SIZE = 5, 61, 2, 16
_DTYPES = [torch.float32, torch.bfloat16]
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.fixture(params=[1, 2], ids=["one core", "two cores"], autouse=True)
def num_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _assert_close(ours: Tensor, reference: Tensor) -> None:
    tolerance = _TOLERANCE[ours.dtype]
    torch.testing.assert_close(ours.float(), reference.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_norm(dtype: torch.dtype, rows: int) -> None:
    x, weight = 3 * _random(rows, 96, dtype=dtype), _random(96, dtype=dtype, seed=1)
    reference = TorchRowOps().norm(x.double(), weight.double(), _EPS)
    _assert_close(CpuRowOps(dtype).norm(x, weight, _EPS), reference)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_norm_of_a_view(dtype: torch.dtype) -> None:
    whole, weight = _random(3, 6, 16, dtype=dtype), _random(16, dtype=dtype, seed=1)
    _assert_close(CpuRowOps(dtype).norm(whole[:, 1:4], weight, _EPS), TorchRowOps().norm(whole[:, 1:4], weight, _EPS))


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_gate(dtype: torch.dtype, rows: int) -> None:
    gate_up = 8 * _random(rows, 2 * 48, dtype=dtype)
    _assert_close(CpuRowOps(dtype).gate(gate_up), TorchRowOps().gate(gate_up.double()))


def test_gates_far_from_zero() -> None:
    gate = torch.tensor([[-1e30, -200.0, -80.0, 0.0, 80.0, 200.0, 1e30]])
    gated = CpuRowOps(gate.dtype).gate(torch.cat((gate, torch.ones_like(gate)), dim=-1))
    torch.testing.assert_close(gated, gate.clamp(min=0), atol=1e-5, rtol=1e-5)


def _cache(dtype: torch.dtype) -> FlatCache:
    cache = FlatCache(2, _SLOTS, _LEN, _KEY_HEADS, _SIZE, like=torch.empty(0, dtype=dtype))
    cache.all.copy_(_random(*cache.all.shape, dtype=dtype, seed=7))
    return cache


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("reach", [None, 9])
@pytest.mark.parametrize("num_heads", [2, 6])
@pytest.mark.parametrize(
    ("first_row", "starts", "num_new"),
    [
        (0, [0], 1),
        (3, [17], 1),
        (1, [12], 5),
        (0, [0, 3, 30, 11, 56], 4),
        (1, [60, 2], 1),
        (0, [56, 40, 51], 5),  # to the end of the cache
    ],
)
def test_attention(
    dtype: torch.dtype,
    reach: int | None,
    num_heads: int,
    first_row: int,
    starts: list[int],
    num_new: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_ops, "_PARALLEL_KEYS", 0)
    cos_LD, sin_LD = rotation(torch.arange(_LEN - 2), _SIZE, 10_000.0, dtype)  # padding stands beyond what is known
    ours, reference = _cache(dtype), _cache(dtype)
    window = PassWindow(torch.device("cpu"))
    window.set(first_row, starts, num_new)
    heads = _random(len(starts) * num_new + 2, (num_heads + 2 * _KEY_HEADS) * _SIZE, dtype=dtype, seed=3)
    reaches, scale = [None, reach], 0.3
    attend = CpuAttention(ours, cos_LD, sin_LD, num_heads=num_heads, scale=scale, reaches=reaches)
    attend.begin(window)
    expected = SdpaAttention(
        reference,
        window,
        cos_LD,
        sin_LD,
        num_heads=num_heads,
        num_key_heads=_KEY_HEADS,
        scale=scale,
        reaches=reaches,
    )
    for layer in (0, 1):
        attended = attend(layer, heads)
        _assert_close(attended[:-2], expected(layer, heads[:-2]))
        assert attended[-2:].eq(0).all()  # vectors beyond the pass's are padding
    _assert_close(ours.all, reference.all)


def test_it_looks_no_further_back_than_the_first_position() -> None:
    cos_LD, sin_LD = rotation(torch.arange(_LEN), _SIZE, 10_000.0, torch.float32)
    window = PassWindow(torch.device("cpu"))
    window.set(0, [30, 20], 2)
    heads = _random(4, (2 + 2 * _KEY_HEADS) * _SIZE, dtype=torch.float32)
    attended = []
    for before in (0.0, 1e4):
        cache = _cache(torch.float32)
        cache.all[:, 0, :, :28] = before
        cache.all[:, 1, :, :20] = before
        attend = CpuAttention(cache, cos_LD, sin_LD, num_heads=2, scale=0.3, reaches=[None, None])
        attend.begin(window, [28, 20])
        attended.append(attend(0, heads))
    assert torch.equal(*attended)


def test_everything_is_compiled_before_the_first_pass() -> None:
    cos_LD, sin_LD = rotation(torch.arange(_LEN), _SIZE, 10_000.0, torch.float32)
    CpuRowOps(torch.float32)
    CpuAttention(_cache(torch.float32), cos_LD, sin_LD, num_heads=2, scale=0.3, reaches=[None, None])
    before = _num_compiled()
    test_norm(torch.float32, 3)
    test_norm(torch.float32, 40)
    test_gate(torch.float32, 3)
    test_gate(torch.float32, 40)
    test_it_looks_no_further_back_than_the_first_position()
    assert _num_compiled() == before


def _num_compiled() -> int:
    kernels = [getattr(cpu_kernels, name) for name in ("rms_norm", "silu_gate", "attend")]
    kernels += [getattr(cpu_kernels, name) for name in ("rms_norm_parallel", "silu_gate_parallel", "attend_parallel")]
    return sum(len(kernel.signatures) for kernel in kernels)


def test_torch_keeps_its_number_of_threads() -> None:
    """In a fresh process: numba starts its threads once."""
    code = """
import torch
torch.set_num_threads(1)
from osd.models.cpu_ops import CpuRowOps
CpuRowOps(torch.float32)
print(torch.get_num_threads())
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"1\n"


def test_where_numba_is_missing_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_ops, "_kernels", lambda: None)
    assert not cpu_ops.fits(torch.empty(0))
