"""The GPU's kernels by Triton's interpreter, which runs them on a CPU: they look where torch's attention looks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from osd.models.attention import Attention, SdpaAttention
from osd.models.flat_cache import FlatCache
from osd.models.gpu.attention import PiecewiseAttention, can_look_in_pieces, fits_pieces
from osd.models.rotary import rotation
from osd.models.slot_cache import PassWindow
from osd.models.slot_model import SlotModel
from tests.engine_kit import VOCAB_TOKENS, tiny_llama

_CPU = torch.device("cpu")

pytest.importorskip("triton")  # on Linux only


class _Bench:
    """Two equal caches with two layers, the second with a reach, for both ways of looking back."""

    def __init__(self, dtype: torch.dtype, *, num_heads: int, size: int, reach: int | None, max_len: int) -> None:
        self.generator = torch.Generator().manual_seed(3)
        self.dtype, self.num_heads, self.size, self.max_len = dtype, num_heads, size, max_len
        like = torch.empty(0, dtype=dtype)
        self.caches = [FlatCache(2, 5, max_len, 2, size, like=like) for _ in range(2)]
        noise = torch.randn(self.caches[0].all.shape, generator=self.generator)
        for cache in self.caches:
            cache.all.copy_(noise)
        self.cos_LD, self.sin_LD = rotation(torch.arange(max_len - 3), size, 1e4, dtype)
        self.heads: dict[str, Any] = {
            "num_heads": num_heads, "num_key_heads": 2, "scale": size**-0.5, "reaches": [None, reach],
        }  # fmt: skip

    def look(self, starts: list[int], num_new: int, num_seen: int) -> list[tuple[Tensor, Tensor]]:
        """Of both layers, by torch and by the kernels: what was looked at."""
        window = PassWindow(_CPU)
        window.set_on_device(torch.tensor(starts), num_new, num_seen)
        seen = []
        rotation_LD = self.cos_LD, self.sin_LD
        ways: list[Attention] = [
            SdpaAttention(self.caches[0], window, *rotation_LD, **self.heads),
            PiecewiseAttention(self.caches[1], window, *rotation_LD, **self.heads),
        ]
        for layer in range(2):
            shape = len(starts) * num_new, (self.num_heads + 4) * self.size
            heads = torch.randn(shape, generator=self.generator).to(self.dtype)
            expected, got = (way(layer, heads.clone()) for way in ways)
            seen.append((expected, got))
        return seen

    def check(self, starts: list[int], num_new: int, num_seen: int, num_real: int | None = None) -> None:
        """Both look at the same, and keep the same."""
        rows = num_new * (len(starts) if num_real is None else num_real)
        tolerance = 1e-5 if self.dtype == torch.float32 else 1e-2
        for expected, got in self.look(starts, num_new, num_seen):
            torch.testing.assert_close(got[:rows], expected[:rows], atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(self.caches[1].all, self.caches[0].all, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter has no products of bfloat16
@pytest.mark.parametrize(("num_heads", "size"), [(2, 16), (6, 24)])
@pytest.mark.parametrize("reach", [None, 9, 200])
@pytest.mark.parametrize(
    ("starts", "num_new", "num_seen"),
    [
        ([0], 1, 256),
        ([299], 1, 512),  # several pieces, the last of them beyond the row
        ([3, 127, 128, 250], 5, 256),
        ([200, 12], 2, 400),
    ],
)
def test_the_kernels_look_where_torch_does(
    dtype: torch.dtype, num_heads: int, size: int, reach: int | None, starts: list[int], num_new: int, num_seen: int
) -> None:
    _Bench(dtype, num_heads=num_heads, size=size, reach=reach, max_len=520).check(starts, num_new, num_seen)


def test_one_piece_is_enough_for_many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    from osd.models.gpu import pieces

    monkeypatch.setattr(pieces, "_ENOUGH_PROGRAMS", 2)
    _Bench(torch.float32, num_heads=4, size=16, reach=30, max_len=520).check([3, 300], 3, 512)


@pytest.mark.parametrize("is_alone", [False, True])
def test_a_row_of_padding_looks_at_nothing(is_alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from osd.models.gpu import pieces

    if is_alone:
        monkeypatch.setattr(pieces, "_ENOUGH_PROGRAMS", 2)
    bench = _Bench(torch.float32, num_heads=4, size=16, reach=None, max_len=520)
    for _, got in bench.look([5, 516], 2, 256):
        assert got[:2].abs().sum() > 0 and not got[2:].any()


def test_nothing_beyond_a_row_is_read() -> None:
    """torch's attention turns a hidden NaN into NaN, since it reads as far as the longest row."""
    bench = _Bench(torch.float32, num_heads=4, size=16, reach=None, max_len=520)
    for cache in bench.caches:
        cache.all[:, 0, :, 12:] = torch.nan
    for expected, got in bench.look([10, 400], 2, 512):
        assert expected[:2].isnan().any() and got.isfinite().all()


def test_a_pass_in_pieces_gives_the_models_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osd.models.fused.can_look_in_pieces", lambda device: True)
    monkeypatch.setattr("osd.models.fused.can_compile", lambda weight: False)
    model = SlotModel(tiny_llama(), num_slots=3, max_context_tokens=40, max_new_tokens=16)
    assert model.looks_in_pieces
    ids_BQ = torch.randint(0, VOCAB_TOKENS, (3, 9), generator=torch.Generator().manual_seed(0))
    starts = [0, 0, 0]
    expected, got = model.forward(0, ids_BQ, starts), model.forward(0, ids_BQ, starts, in_pieces=True)
    torch.testing.assert_close(got.hidden_BQH, expected.hidden_BQH, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("breaks", [False, True])
def test_wrong_kernels_are_not_used(
    breaks: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from osd.models.gpu import pieces

    def wrong(heads_BQXD: Tensor, *args: Any, num_heads: int, **kwargs: Any) -> Tensor:
        if breaks:
            raise RuntimeError("no compiler")
        return heads_BQXD[:, :, :num_heads].flatten(2).flatten(0, 1)

    monkeypatch.setattr("osd.models.fused.can_look_in_pieces", lambda device: True)
    monkeypatch.setattr("osd.models.fused.can_compile", lambda weight: False)
    monkeypatch.setattr(pieces, "look_in_pieces", wrong)
    model = SlotModel(tiny_llama(), num_slots=3, max_context_tokens=40, max_new_tokens=16)
    assert not model.looks_in_pieces and model.is_fused
    assert "attention in pieces is not used for LlamaForCausalLM" in caplog.text


def test_where_it_is_possible() -> None:
    assert not can_look_in_pieces(_CPU)
    assert fits_pieces(5, 32, 8) and not fits_pieces(64, 32, 8)
