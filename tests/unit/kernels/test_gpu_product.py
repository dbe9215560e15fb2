"""The GPU's kernels for matrix products and what stands between them, by Triton's interpreter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest
import torch

from osd.drafters.feature import FeatureDrafter
from osd.kernels.backend import Sizes
from osd.kernels.gpu.decoder import GpuDecoder
from osd.kernels.gpu.feature_round import GpuFeatureRound
from osd.kernels.gpu.graphs import Work
from osd.kernels.reference.llama import Llama
from osd.kernels.reference.projections import ByteCodes
from osd.machine.arrays import tensor
from osd.records.proposal import DraftBatch
from osd.records.query import SamplingParams
from tests.kit.backends import TORCH, captured_by
from tests.kit.engine_kit import VOCAB_TOKENS, feature_drafter, feature_state, make_target, tiny_llama
from tests.kit.product_bench import ProductBench
from tests.kit.rounding import decoder_gap, gap_of_rows

pytest.importorskip("triton")  # on Linux only


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter has no products of bfloat16
@pytest.mark.parametrize(
    ("num_rows", "num_inputs", "num_outputs"),
    [(1, 96, 40), (5, 1024, 64), (8, 64, 16), (11, 520, 70)],
)
def test_products_are_what_torch_says(
    dtype: torch.dtype, num_rows: int, num_inputs: int, num_outputs: int, coded: bool
) -> None:
    bench = ProductBench(dtype, num_rows=num_rows, num_inputs=num_inputs, num_outputs=num_outputs)
    bench.check_products(coded=coded)
    bench.check_rows()


def test_the_highest_is_the_first_of_equal_ones() -> None:
    from osd.kernels.gpu.highest import highest

    values_RV = torch.randint(0, 30, (3, 5000), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(highest(values_RV), values_RV.argmax(dim=1))
    assert torch.equal(highest(values_RV[:, :100]), values_RV[:, :100].argmax(dim=1))


def test_a_row_that_is_not_finite_has_a_place_within_it() -> None:
    """Of NaN all comparisons are false; padding must not win, or a token would be chosen that there is not."""
    from osd.kernels.gpu.highest import highest

    values_RV = torch.zeros(4, 2100)
    values_RV[0], values_RV[1], values_RV[2, 2070] = torch.nan, -torch.inf, torch.nan
    values_RV[3, 40] = torch.inf
    assert highest(values_RV).tolist() == [0, 0, 2070, 40]


@pytest.mark.parametrize(("wrong", "num_new"), [("scores", 2), ("gates", 9)])
def test_a_pass_that_is_slightly_wrong_is_told_from_rounding(wrong: str, num_new: int) -> None:
    """Where scores, or one gate's outputs, are a tenth too great."""

    def spoil(llama: Llama) -> None:
        if wrong == "scores":
            llama.heads = llama.heads._replace(scale=1.1 * llama.heads.scale)
        else:
            llama.layers[0].dense["gate_up"].weight_OI[:4] *= 1.1

    got, exact = passes(num_new, torch.float16, spoil)
    for ours, theirs in zip(got, exact, strict=True):
        assert gap_of_rows(ours, theirs) > decoder_gap(torch.float16, num_layers=2, num_terms=48)


def passes(
    num_new: int, dtype: torch.dtype, spoil: Callable[[Llama], None] = lambda llama: None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Hidden states and logits by kernels, and by torch in float64, with the same weights."""
    plain, sizes = tiny_llama().to(dtype), Sizes(num_slots=3, max_positions=40, max_len=56)
    options: dict[str, Any] = {"kept": None, "frozen": True, "is_int4": False}
    exact = TORCH.decoder(copy.deepcopy(plain).double(), sizes, **options)
    decoder = captured_by(run_at_once, has_kernels=True).decoder(plain, sizes, **options)
    assert exact is not None and isinstance(decoder, GpuDecoder) and decoder.kernels is not None
    spoil(decoder.torch.llama)
    ids_BQ = torch.randint(0, VOCAB_TOKENS, (3, num_new), generator=torch.Generator().manual_seed(0))
    outputs = [way.read(0, ids_BQ, [0, 0, 0], logits="all") for way in (decoder.kernels, exact)]
    got, expected = ([output.hidden_BQH, output.logits_BQV] for output in outputs)
    return got, expected


def test_a_drafters_round_by_kernels_proposes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    proposals = [rounds_of(drafter_that_reads(by_kernels, monkeypatch)) for by_kernels in (False, True)]
    assert torch.equal(*proposals)


def test_a_drafters_features_by_codes_are_those_of_its_weights_but_for_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drafter = drafter_that_reads(True, monkeypatch, dtype=torch.float16)
    computes = drafter.round
    assert isinstance(computes, GpuFeatureRound) and computes.kernels is not None
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(0, VOCAB_TOKENS, (3, 4), generator=generator)
    hidden_BTH = torch.randn(3, 4, drafter.config.hidden_size, generator=generator).half()
    inputs = tokens_BT, hidden_BTH, torch.tensor([0, 2, 5]), torch.tensor([0, 2, 5])
    expected, got = computes.torch.read(*inputs), computes.kernels.read(*inputs)
    gap = (got - expected).norm() / expected.norm()
    assert 1e-3 < gap < 3e-2


def test_a_swap_brings_the_codes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = drafter_that_reads(True, monkeypatch)
    computes = drafter.round
    assert isinstance(computes, GpuFeatureRound)
    kernels = computes.kernels
    assert kernels is not None
    before = rounds_of(drafter)
    other = feature_state(drafter.config, seed=8)
    drafter.prepare(other, 2)()
    assert computes.kernels is kernels and not torch.equal(rounds_of(drafter), before)
    expected = ByteCodes.of(other["qkv.weight"])
    codes = kernels.dense["qkv"].codes
    assert codes is not None and torch.equal(codes.codes_OI, expected.codes_OI)
    torch.testing.assert_close(codes.steps_O, expected.steps_O)


def drafter_that_reads(
    by_kernels: bool, monkeypatch: pytest.MonkeyPatch, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> FeatureDrafter:
    """Its rounds are run as they are captured, by kernels or by torch's operations."""
    ways: Callable[[Work, Work, object], Work] = lambda first, second, inputs: second  # noqa: E731
    monkeypatch.setattr("osd.kernels.gpu.graphs.quickest", ways)
    target = make_target(tiny_llama().to(device, dtype), backend=TORCH)
    backend = captured_by(partial(run_at_once, device=device), has_kernels=by_kernels)
    return feature_drafter(target, backend=backend)


def run_at_once(work: Work, inputs: object, device: str = "cpu") -> Work:
    return lambda *inputs: work(*(one.to(device) for one in inputs))


def rounds_of(drafter: FeatureDrafter) -> torch.Tensor:
    """What it proposes in a first round of rows with a little to read, and in two after it."""
    generator = torch.Generator().manual_seed(0)
    tokens_SL = torch.randint(0, VOCAB_TOKENS, (4, 64), generator=generator).to(drafter.device)
    hidden_SLH = torch.randn(4, 64, drafter.config.hidden_size, generator=generator).to(drafter.device)
    proposed = []
    for row in range(3):
        drafter.reset_row(row)
    for num_tokens in ([4, 30, 3], [5, 34, 4], [7, 35, 8]):
        batch = DraftBatch(
            tokens_SL=tokens_SL,
            hidden_SLH=hidden_SLH,
            num_tokens=num_tokens,
            lengths=[3, 3, 3],
            params=[SamplingParams(temperature=0.0)] * 3,
            generators=[Random()] * 3,
        )
        proposed.append(tensor(drafter.propose(batch).token_ids_BK).clone())
    return torch.stack(proposed)
