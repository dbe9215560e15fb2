"""The distribution a query is drawn from, against references written token by token."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from osd.kernels.cpu.backend.logits import shapes_of
from osd.records.query import SamplingParams
from osd.verify.shaping import BatchShaping, RowShaping, draw
from osd.verify.shaping import shape_probs as shape_rows

_logits = st.lists(st.floats(-6, 6, allow_nan=False, width=32), min_size=2, max_size=12)


def shape_probs(logits_QV: Tensor, params: SamplingParams) -> Tensor:
    """Beside a row with other filters, which must not matter."""
    other = SamplingParams(temperature=0.5, top_p=0.6, top_k=2, min_p=0.3)
    logits_BQV = torch.stack((logits_QV, logits_QV.flip(0)))
    shaping = BatchShaping.of([RowShaping.of(params), RowShaping.of(other)], logits_QV.shape[-1], logits_QV.device)
    probs_QV = shape_rows(logits_BQV, shaping)[0]
    alone_QV = shape_rows(
        logits_QV[None], BatchShaping.of([RowShaping.of(params)], logits_QV.shape[-1], logits_QV.device)
    )[0]
    torch.testing.assert_close(probs_QV, alone_QV)
    return alone_QV


def naive_probs(logits: list[float], params: SamplingParams) -> list[float]:
    """Temperature, then min-p, top-k and top-p, each over what the one before left."""
    weights = [math.exp((logit - max(logits)) / params.temperature) for logit in logits]
    probs = [weight / sum(weights) for weight in weights]
    kept = [prob >= params.min_p * max(probs) for prob in probs]
    if params.top_k:
        least = sorted((prob for prob, keep in zip(probs, kept, strict=True) if keep), reverse=True)[: params.top_k][-1]
        kept = [keep and prob >= least for prob, keep in zip(probs, kept, strict=True)]
    mass = sum(prob for prob, keep in zip(probs, kept, strict=True) if keep)
    before = 0.0
    for token in sorted(range(len(probs)), key=lambda token: -probs[token]):
        if kept[token] and before >= params.top_p:
            kept[token] = False
        elif kept[token]:
            before += probs[token] / mass
    mass = sum(prob for prob, keep in zip(probs, kept, strict=True) if keep)
    return [prob / mass if keep else 0.0 for prob, keep in zip(probs, kept, strict=True)]


_LOGITS = [0.3, 2.1, -1.0, 1.7, 0.0, -3.0, 2.0, 0.9]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.3),
        SamplingParams(temperature=2.0),
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.05),
        SamplingParams(top_k=3),
        SamplingParams(top_k=1),
        SamplingParams(top_k=8),
        SamplingParams(top_k=100),
        SamplingParams(min_p=0.2),
        SamplingParams(min_p=1.0),
        SamplingParams(temperature=0.8, top_p=0.7, top_k=5, min_p=0.1),
        SamplingParams(temperature=1.5, top_p=0.5, min_p=0.3),
    ],
)
def test_filters_agree_with_the_reference(params: SamplingParams) -> None:
    rows = [_LOGITS, _LOGITS[::-1], [5.0, *_LOGITS[1:]]]
    probs_QV = shape_probs(torch.tensor(rows), params)
    for row, probs_V in zip(rows, probs_QV, strict=True):
        assert probs_V.tolist() == pytest.approx(naive_probs(row, params), abs=1e-6)


def test_a_top_k_that_no_integer_of_64_bits_holds_keeps_all() -> None:
    params = SamplingParams(top_k=10**30)
    assert torch.equal(
        shape_probs(torch.tensor([_LOGITS]), params), shape_probs(torch.tensor([_LOGITS]), SamplingParams())
    )
    assert (
        shapes_of([RowShaping.of(params)]).top_k_B.tolist()
        == shapes_of([RowShaping.of(SamplingParams())]).top_k_B.tolist()
    )


@settings(deadline=None)
@given(
    _logits,
    st.floats(0.1, 2.0),
    st.sampled_from([1.0, 0.99, 0.9, 0.4, 0.01]),
    st.integers(0, 6),
    st.sampled_from([0.0, 0.05, 0.6]),
)
def test_what_is_left_is_always_a_distribution(
    logits: list[float], temperature: float, top_p: float, top_k: int, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p)
    probs_V = shape_probs(torch.tensor([logits]), params)[0]
    assert float(probs_V.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(probs_V.min()) >= 0.0
    # Filters drop the least likely, up to rounding: logits that are all but equal are equally likely.
    plain_V, kept = torch.softmax(torch.tensor(logits) / temperature, dim=-1), probs_V > 0
    assert bool(kept[plain_V == plain_V.max()].any())
    if bool((~kept).any()):
        assert plain_V[kept].min() >= plain_V[~kept].max()


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.9999])
def test_the_nucleus_of_a_large_flat_vocabulary(top_p: float) -> None:
    """Wider than the first guess of the nucleus' size; a full sort must then give the same."""
    logits = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)) * 0.1
    probs_V = shape_probs(logits, SamplingParams(top_p=top_p))[0]
    sorted_V, order_V = torch.softmax(logits[0].double(), dim=-1).sort(descending=True)
    num_kept = int((sorted_V.cumsum(0) - sorted_V < top_p).sum())
    assert num_kept > 1024
    assert abs(int((probs_V > 0).sum()) - num_kept) <= 1  # the last one is a matter of rounding
    assert set(torch.nonzero(probs_V)[:, 0].tolist()) <= set(order_V[: num_kept + 1].tolist())


def test_very_small_temperatures_do_not_overflow() -> None:
    probs_V = shape_probs(torch.tensor([[100.0, 99.0, -100.0]]), SamplingParams(temperature=1e-4))[0]
    assert probs_V.tolist() == [1.0, 0.0, 0.0]


# ---- drawing -------------------------------------------------------------------------------------------------------

_EXTREMES = [0.0, 2.0**-24, 0.25, 0.5, 1.0 - 2.0**-24]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-7, 0.1, 1.0, 3.0]), min_size=1, max_size=10).filter(
        lambda weights: sum(weights) > 0
    ),
    st.one_of(st.sampled_from(_EXTREMES), st.floats(0, 1, exclude_max=True, width=32)),
)
def test_a_token_without_weight_is_never_drawn(weights: list[float], uniform: float) -> None:
    token = int(draw(torch.tensor([weights]), torch.tensor([uniform]))[0])
    assert weights[token] > 0


def test_draws_divide_the_unit_interval_by_weight() -> None:
    weights = torch.tensor([[0.0, 2.0, 0.0, 1.0, 5.0, 0.0]])
    grid = torch.arange(8000) / 8000
    tokens = draw(weights.expand(8000, -1), grid)
    assert torch.bincount(tokens, minlength=6).tolist() == [0, 2000, 0, 1000, 5000, 0]


def test_rows_are_drawn_independently() -> None:
    weights: Tensor = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert draw(weights, torch.tensor([0.99, 0.0, 0.5])).tolist() == [0, 1, 1]
