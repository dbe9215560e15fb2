"""The GPU's kernels by Triton's interpreter, which runs them on a CPU: they look where torch's attention looks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from osd.kernels.gpu.attention import fits_kernels
from osd.kernels.gpu.backend import can_use_kernels
from osd.kernels.gpu.decoder import GpuDecoder
from osd.models.slot_model import SlotModel
from tests.kit.attention_bench import AttentionBench
from tests.kit.backends import captured_by
from tests.kit.engine_kit import tiny_llama

_CPU = torch.device("cpu")

pytest.importorskip("triton")  # on Linux only


@pytest.mark.parametrize(
    ("dtype", "num_heads", "size", "reach"),
    [
        (torch.float32, 2, 16, None),
        (torch.float32, 6, 24, 9),
        (torch.float32, 2, 8, 200),
        (torch.float16, 6, 16, None),  # the interpreter has no products of bfloat16
    ],
)
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
    AttentionBench(dtype, num_heads=num_heads, size=size, reach=reach, max_len=520).check(starts, num_new, num_seen)


def test_one_piece_is_enough_for_many_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    from osd.kernels.gpu import pieces

    monkeypatch.setattr(pieces, "ENOUGH_PROGRAMS", 2)
    AttentionBench(torch.float32, num_heads=4, size=16, reach=30, max_len=520).check([3, 300], 3, 512)


@pytest.mark.parametrize("is_alone", [False, True])
def test_a_row_of_padding_looks_at_nothing(is_alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from osd.kernels.gpu import pieces

    if is_alone:
        monkeypatch.setattr(pieces, "ENOUGH_PROGRAMS", 2)
    bench = AttentionBench(torch.float32, num_heads=4, size=16, reach=None, max_len=520)
    for _, got in bench.look([5, 516], 2, 256):
        assert got[:2].abs().sum() > 0 and not got[2:].any()


def test_nothing_beyond_a_row_is_read() -> None:
    """torch's attention turns a hidden NaN into NaN, since it reads as far as the longest row."""
    bench = AttentionBench(torch.float32, num_heads=4, size=16, reach=None, max_len=520)
    for cache in bench.caches:
        cache.all[:, 0, :, 12:] = torch.nan
    for expected, got in bench.look([10, 400], 2, 512):
        assert expected[:2].isnan().any() and got.isfinite().all()


@pytest.mark.parametrize("breaks", [False, True])
def test_wrong_kernels_are_not_used(
    breaks: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from osd.kernels.gpu import pieces

    def wrong(heads_BQXD: Tensor, *args: Any, num_heads: int, **kwargs: Any) -> Tensor:
        if breaks:
            raise RuntimeError("no compiler")
        return heads_BQXD[:, :, :num_heads].flatten(2).flatten(0, 1)

    monkeypatch.setattr(pieces, "look_in_pieces", wrong)
    backend = captured_by(lambda work, inputs: work, has_kernels=True)
    model = SlotModel(tiny_llama(), backend, num_slots=3, max_context_tokens=40, max_new_tokens=16)
    assert isinstance(model.decoder, GpuDecoder) and model.decoder.kernels is None
    assert "the GPU's kernels are not used for LlamaForCausalLM" in caplog.text


def test_where_it_is_possible() -> None:
    assert not can_use_kernels(_CPU)
    assert fits_kernels(5, 32, 8) and not fits_kernels(64, 32, 8)
