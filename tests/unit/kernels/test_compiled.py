"""The compiled layers against torch's operations, which compute the same."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from osd.kernels.backend import adopt_rows
from osd.kernels.cpu.arrays import array, tensor
from osd.kernels.cpu.backend.layers import CompiledLayers, LayerWeights, TiledProjection, in_layout
from osd.kernels.cpu.kernels import kernels
from osd.kernels.cpu.products.codes import MOST, rounded
from osd.kernels.cpu.products.tiling import tiled, untiled
from osd.kernels.cpu.tiled_cache import TiledCache
from osd.kernels.reference.attention import SdpaAttention
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.rotary import rotation
from osd.kernels.reference.row_ops import rms_norm, silu_gate
from osd.kernels.reference.window import PassWindow

_FOUND = kernels()
if _FOUND is None:
    pytest.skip("numba is not installed", allow_module_level=True)
_KERNELS = _FOUND
_EPS = 1e-5
_SLOTS, _LEN, _KEY_HEADS, _SIZE, _HIDDEN, _GATE = 5, 61, 2, 16, 64, 96
_DTYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.usefixtures("num_threads")


def _random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _assert_close(ours: Tensor, reference: Tensor) -> None:
    tolerance = 1e-5 if ours.dtype == torch.float32 else 4e-2
    gap = (ours.double() - reference.double()).norm() / reference.double().norm()
    assert gap < tolerance


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("num_outputs", [32, 40, 100])
@pytest.mark.parametrize("num_rows", [1, 3, 8, 21])
def test_projection(dtype: torch.dtype, num_outputs: int, num_rows: int) -> None:
    weight_OI, bias_O = _random(num_outputs, 72, dtype=dtype), _random(num_outputs, dtype=dtype, seed=1)
    x = _random(num_rows, 1, 72, dtype=dtype, seed=2)
    for bias in (None, bias_O):
        expected = torch.nn.functional.linear(x.double(), weight_OI.double(), None if bias is None else bias.double())
        _assert_close(TiledProjection(_KERNELS, weight_OI, bias)(x), expected)


@pytest.mark.parametrize("num_rows", [1, 8, 21])
@pytest.mark.parametrize("num_inputs", [32, 96])
@pytest.mark.parametrize("bits", [4, 8])
def test_projection_of_codes(bits: int, num_inputs: int, num_rows: int) -> None:
    weight_OI, bias_O = _random(100, num_inputs, dtype=torch.bfloat16), _random(100, dtype=torch.bfloat16, seed=1)
    x_RI = _random(num_rows, num_inputs, dtype=torch.bfloat16, seed=2)
    weight_OI = rounded(weight_OI, bits)
    project = TiledProjection(_KERNELS, weight_OI, bias_O, bits=bits)
    _assert_close(project(x_RI), torch.nn.functional.linear(x_RI.double(), weight_OI.double(), bias_O.double()))


def test_a_rows_product_does_not_depend_on_the_rows_beside_it() -> None:
    weight_OI, x_RI = _random(96, 64, dtype=torch.bfloat16), _random(11, 64, dtype=torch.bfloat16, seed=1)
    project = TiledProjection(_KERNELS, weight_OI)
    together_RO = project(x_RI)
    for row in range(len(x_RI)):
        assert torch.equal(project(x_RI[row : row + 1]), together_RO[row : row + 1])


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("num_parts", [1, 2])
def test_tiles_hold_every_weight(dtype: torch.dtype, num_parts: int) -> None:
    weight_OI, bias_O = _random(80, 6, dtype=dtype), _random(80, dtype=dtype, seed=1)
    again = untiled(tiled(weight_OI, bias_O, num_parts), dtype, 80, num_parts)
    assert torch.equal(again[0], weight_OI) and torch.equal(again[1], bias_O)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_norm(dtype: torch.dtype) -> None:
    x_RH, weight_H = 3 * _random(3, 96, dtype=dtype), _random(96, dtype=torch.float32, seed=1)
    out = torch.empty(3, 2 * 96, dtype=dtype)
    _KERNELS.norm(x_RH, weight_H.numpy(), _EPS, out[:, 96:])
    _assert_close(out[:, 96:], rms_norm(x_RH.double(), weight_H.double(), _EPS))


@pytest.mark.parametrize("num_outputs", [32, 72])
@pytest.mark.parametrize("num_inputs", [32, 96])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_say_the_nearest_weights(bits: int, num_outputs: int, num_inputs: int) -> None:
    weight_OI = _random(num_outputs, num_inputs, dtype=torch.float32)
    weight_OI[0, :32] = 0.5  # a block without a spread
    rounded_OI = rounded(weight_OI, bits)
    blocks, gaps = weight_OI.view(-1, 32), (rounded_OI - weight_OI).view(-1, 32)
    half_steps = (blocks.amax(dim=1) - blocks.amin(dim=1)) / MOST[bits] / 2
    assert (gaps.abs().amax(dim=1) <= half_steps * 1.02 + 2e-3).all()  # low and step are float16
    torch.testing.assert_close(rounded(rounded_OI, bits), rounded_OI, atol=4e-3, rtol=4e-3)


class _Layers:
    """The same random layers twice: compiled, and by torch."""

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        num_heads: int = 6,
        reach: int | None = None,
        has_norms: bool = False,
        gate_bias: Tensor | None = None,
        bits: int = 0,
        size: int = _SIZE,
        max_len: int = _LEN,
    ) -> None:
        self._num_heads, self._reaches, self._size = num_heads, [None, reach], size
        self._scale = 1.2 / size**0.5
        num_mixed = num_heads * size
        shapes = {
            "qkv": (num_mixed + 2 * _KEY_HEADS * size, _HIDDEN),
            "attention_out": (_HIDDEN, num_mixed),
            "gate_up": (2 * _GATE, _HIDDEN),
            "down": (_HIDDEN, _GATE),
        }
        self.weights: list[dict[str, Any]] = []
        for layer in (0, 1):
            seeds = iter(range(100 * layer, 100 * layer + 100))
            one: dict[str, Any] = {
                name: (_random(*shape, dtype=dtype, seed=next(seeds)) / 4, _random(shape[0], dtype=dtype))
                for name, shape in shapes.items()
            }
            if bits:
                for name in shapes:
                    one[name] = rounded(one[name][0], bits), one[name][1]
            if gate_bias is not None:
                one["gate_up"][1][:_GATE] = gate_bias
            for name in ("attention_norm_H", "mlp_norm_H"):
                one[name] = _random(_HIDDEN, dtype=dtype, seed=next(seeds))
            for name in ("query_norm_D", "key_norm_D"):
                one[name] = _random(size, dtype=dtype, seed=next(seeds)) if has_norms else None
            self.weights.append(one)
        self.final_norm_H = _random(_HIDDEN, dtype=dtype, seed=1000)
        self.cos_LD, self.sin_LD = rotation(torch.arange(max_len - 2), size, 10_000.0, dtype)  # padding goes beyond
        shape, like = (2, _SLOTS, max_len, _KEY_HEADS, size), torch.empty(0, dtype=dtype)
        self.tiled, self.flat = TiledCache(*shape, like=like), FlatCache(*shape, like=like)
        self.flat.all.copy_(_random(*self.flat.all.shape, dtype=dtype, seed=7))
        self.fill()
        tiles = [
            LayerWeights(
                **{
                    name: in_layout(value[0], value[1], 2 if name == "gate_up" else 1, bits=bits)
                    if name in shapes
                    else value
                    for name, value in one.items()
                }
            )
            for one in self.weights
        ]
        self._compiled = CompiledLayers(
            _KERNELS,
            tiles,
            self.final_norm_H,
            _EPS,
            self.tiled,
            self.cos_LD,
            self.sin_LD,
            num_heads=num_heads,
            gate_size=_GATE,
            scale=self._scale,
            reaches=self._reaches,
            bits=bits,
        )

    def fill(self) -> None:
        """Let both caches hold the same."""
        adopt_rows(self.tiled, self.flat, [self.flat.all.shape[3]] * _SLOTS)

    def compiled(self, x_RH: Tensor, window: PassWindow, firsts: list[int] | None = None) -> Tensor:
        return tensor(self._compiled(array(x_RH.clone()), window, firsts))

    def reference(self, x_RH: Tensor, window: PassWindow) -> Tensor:
        attend = SdpaAttention(
            self.flat,
            window,
            self.cos_LD,
            self.sin_LD,
            num_heads=self._num_heads,
            num_key_heads=_KEY_HEADS,
            scale=self._scale,
            reaches=self._reaches,
        )

        def project(layer: int, name: str, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, *self.weights[layer][name])

        for layer, one in enumerate(self.weights):
            heads = project(layer, "qkv", rms_norm(x_RH, one["attention_norm_H"], _EPS))
            if one["query_norm_D"] is not None:
                split = [self._num_heads * self._size, _KEY_HEADS * self._size, _KEY_HEADS * self._size]
                query, key, value = torch.split(heads, split, dim=-1)
                query = rms_norm(query.view(len(x_RH), -1, self._size), one["query_norm_D"], _EPS).flatten(1)
                key = rms_norm(key.view(len(x_RH), -1, self._size), one["key_norm_D"], _EPS).flatten(1)
                heads = torch.cat((query, key, value), dim=-1)
            x_RH = x_RH + project(layer, "attention_out", attend(layer, heads))
            gated = silu_gate(project(layer, "gate_up", rms_norm(x_RH, one["mlp_norm_H"], _EPS)))
            x_RH = x_RH + project(layer, "down", gated)
        return rms_norm(x_RH, self.final_norm_H, _EPS)


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
        (2, [0], 61),
        (0, [5, 20], 40),
    ],
)
def test_layers(
    dtype: torch.dtype, reach: int | None, num_heads: int, first_row: int, starts: list[int], num_new: int
) -> None:
    layers = _Layers(dtype, num_heads=num_heads, reach=reach)
    window = PassWindow(torch.device("cpu"))
    window.set(first_row, starts, num_new)
    x_RH = _random(len(starts) * num_new, _HIDDEN, dtype=dtype, seed=3)
    _assert_close(layers.compiled(x_RH, window), layers.reference(x_RH, window))
    for row, start in enumerate(starts, first_row):
        rows = (torch.cat(cache.row(row, start + num_new), dim=1) for cache in (layers.tiled, layers.flat))
        _assert_close(*rows)


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("reach", [None, 150])
@pytest.mark.parametrize("size", [40, 64])
@pytest.mark.parametrize(("starts", "num_new"), [([399, 128, 256, 310], 1), ([127, 128, 310], 3), ([100], 70)])
def test_long_rows(dtype: torch.dtype, reach: int | None, size: int, starts: list[int], num_new: int) -> None:
    layers = _Layers(dtype, reach=reach, size=size, max_len=400)
    window = PassWindow(torch.device("cpu"))
    window.set(1, starts, num_new)
    x_RH = _random(len(starts) * num_new, _HIDDEN, dtype=dtype, seed=3)
    _assert_close(layers.compiled(x_RH, window), layers.reference(x_RH, window))


@pytest.mark.parametrize("dtype", _DTYPES)
def test_norms_of_queries_and_keys(dtype: torch.dtype) -> None:
    layers = _Layers(dtype, has_norms=True)
    window = PassWindow(torch.device("cpu"))
    window.set(0, [20, 9], 3)
    x_RH = _random(6, _HIDDEN, dtype=dtype, seed=3)
    _assert_close(layers.compiled(x_RH, window), layers.reference(x_RH, window))


@pytest.mark.parametrize("num_rows", [1, 4, 13])
@pytest.mark.parametrize("bits", [4, 8])
def test_layers_of_codes(bits: int, num_rows: int) -> None:
    layers = _Layers(torch.bfloat16, bits=bits)
    window = PassWindow(torch.device("cpu"))
    window.set(0, [20], num_rows)
    x_RH = _random(num_rows, _HIDDEN, dtype=torch.bfloat16, seed=3)
    _assert_close(layers.compiled(x_RH, window), layers.reference(x_RH, window))


def test_gates_far_from_zero() -> None:
    layers = _Layers(torch.float32, gate_bias=torch.linspace(-300, 300, _GATE))
    window = PassWindow(torch.device("cpu"))
    window.set(0, [3], 1)
    x_RH = _random(1, _HIDDEN, dtype=torch.float32)
    _assert_close(layers.compiled(x_RH, window), layers.reference(x_RH, window))


def test_it_looks_no_further_back_than_the_first_position() -> None:
    window = PassWindow(torch.device("cpu"))
    window.set(0, [30, 20], 2)
    x_RH = _random(4, _HIDDEN, dtype=torch.float32)
    seen = []
    for before in (0.0, 1e4):
        layers = _Layers(torch.float32)
        layers.flat.all[:, 0, :, :28] = before
        layers.flat.all[:, 1, :, :20] = before
        layers.fill()
        seen.append(layers.compiled(x_RH, window, [28, 20]))
    assert torch.equal(*seen)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_what_another_query_left_beyond_a_row_is_not_seen(dtype: torch.dtype) -> None:
    """Not even where it is no number."""
    window = PassWindow(torch.device("cpu"))
    window.set(0, [30, 32, 12], 2)
    x_RH = _random(6, _HIDDEN, dtype=dtype)
    seen = []
    for left in (0.0, torch.nan):
        layers = _Layers(dtype)
        for row, start in enumerate((30, 32, 12)):
            layers.flat.all[:, row, :, start:] = left
        layers.fill()
        seen.append(layers.compiled(x_RH, window))
    assert torch.equal(*seen)


@pytest.mark.parametrize("reach", [None, 70])
def test_rows_of_a_pass_are_computed_alone(reach: int | None) -> None:
    """Plain decoding and verification read the same numbers, whatever else is in the batch."""
    x_RH = _random(6, _HIDDEN, dtype=torch.bfloat16)
    window = PassWindow(torch.device("cpu"))
    starts = [270, 127]
    window.set(0, starts, 3)
    together = _Layers(torch.bfloat16, size=64, max_len=300, reach=reach).compiled(x_RH, window)
    one_by_one = _Layers(torch.bfloat16, size=64, max_len=300, reach=reach)
    for row, start in enumerate(starts):
        for offset in range(3):
            window.set(row, [start + offset], 1)
            at = 3 * row + offset
            assert torch.equal(one_by_one.compiled(x_RH[at : at + 1], window), together[at : at + 1])


def test_torch_keeps_its_number_of_threads() -> None:
    """In a fresh process: numba starts its threads once."""
    code = """
import torch
torch.set_num_threads(1)
from osd.kernels.backend import adopt_rows
from osd.kernels.cpu.arrays import array, tensor
from osd.kernels.cpu.kernels import kernels
assert kernels() is not None
print(torch.get_num_threads())
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"1\n"
