"""Sampled rows by compiled loops: the distributions, verdicts and draws that tensors give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from osd.kernels.cpu.backend.logits import shapes_of
from osd.kernels.cpu.kernels import kernels
from osd.records.proposal import Proposal
from osd.records.query import SamplingParams
from osd.records.rules import AcceptRule
from osd.verify import shaping as sampling
from osd.verify.logits import SampledRows
from osd.verify.shaping import BatchShaping, RowShaping, shape_probs
from tests.kit.backends import fastest

if kernels() is None:
    pytest.skip("numba is not installed", allow_module_level=True)

from osd.kernels.cpu.verdicts.masses import CHUNK, Masses, draw, empty_masses, mass_of, subtract
from osd.kernels.cpu.verdicts.shaping import shape

_VOCAB = 40_000
_PARAMS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.3),
    SamplingParams(temperature=2.0, top_p=0.95),
    SamplingParams(temperature=0.8, top_p=0.5),
    SamplingParams(temperature=0.01, top_p=0.9),
    SamplingParams(temperature=1.0, top_p=0.0001),
    SamplingParams(temperature=1.0, top_k=1),
    SamplingParams(temperature=1.0, top_k=300, top_p=0.9),
    SamplingParams(temperature=1.0, min_p=0.02),
    SamplingParams(temperature=1.5, min_p=1.0),
    SamplingParams(temperature=1.0, min_p=0.001, top_k=50, top_p=0.7),
    SamplingParams(temperature=1, min_p=1, top_p=1),
    SamplingParams(temperature=1.0, top_p=1e-46),
    SamplingParams(temperature=1e-40),
]


def _shaping(params: list[SamplingParams]) -> BatchShaping:
    return BatchShaping.of(list(map(RowShaping.of, params)), _VOCAB, torch.device("cpu"))


def _logits(*shape: int, spread: float, seed: int = 1) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread).bfloat16()


def _weights(logits_V: Tensor, params: SamplingParams) -> tuple[Masses, float]:
    """By the compiled loops, with what they add up to."""
    weights = empty_masses(_VOCAB)
    for values in weights:
        values.fill(7)  # whatever was there
    shapes, most = shapes_of([RowShaping.of(params)]), np.float32(logits_V.max().item())
    return weights, float(shape(logits_V.view(torch.uint16).numpy(), most, shapes, 0, weights))


def _masses(weights: Masses) -> Tensor:
    """Every token's mass at once, as `mass_of` gives it."""
    has_mass_V = np.repeat(weights.sums_C > 0, CHUNK)[: len(weights.values_V)]
    return torch.from_numpy(np.where(has_mass_V, weights.values_V, np.float32(0)))


def _shaped(logits_V: Tensor, params: SamplingParams) -> Tensor:
    weights, total = _weights(logits_V, params)
    return _masses(weights) / total


def test_a_chunk_without_a_sum_has_no_masses() -> None:
    weights, _ = _weights(_logits(_VOCAB, spread=3.0), SamplingParams(temperature=1.0, top_k=300))
    assert 0 < np.count_nonzero(weights.sums_C) < len(weights.sums_C), "some chunks have masses, others none"
    places = range(0, _VOCAB, 97)
    assert [mass_of(weights, index) for index in places] == _masses(weights)[::97].tolist()


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0, 40.0])  # nearly all tokens make up a nucleus, or one
@pytest.mark.parametrize("params", _PARAMS, ids=repr)
def test_distributions_are_those_of_the_tensors(params: SamplingParams, spread: float) -> None:
    """But for which of several equally likely tokens are left: bfloat16 has many, and torch sorts them as it likes."""
    logits_V = _logits(_VOCAB, spread=spread)
    probs_V = _shaped(logits_V, params)
    expected_V = shape_probs(logits_V[None, None], _shaping([params]))[0, 0]
    assert abs(int((probs_V > 1e-30).sum()) - int((expected_V > 1e-30).sum())) <= 1 + 1e-5 * _VOCAB
    torch.testing.assert_close(probs_V.sort().values, expected_V.sort().values, rtol=2e-4, atol=1e-9)
    kept_V = probs_V > 0
    if not bool(kept_V.all()):
        assert logits_V[kept_V].min() >= logits_V[~kept_V].max()
    likely_V = (logits_V[kept_V].double() - logits_V.max().double()) / params.temperature
    expected = torch.softmax(likely_V, dim=0).float()
    torch.testing.assert_close(probs_V[kept_V], expected, rtol=1e-3, atol=1e-9)


def test_of_equal_ones_no_more_are_kept_than_reach_the_mass() -> None:
    logits_V = torch.full((_VOCAB,), -60.0).bfloat16()
    logits_V[[5, 90, 3_000, 39_999]] = 3.0
    kept = _shaped(logits_V, SamplingParams(temperature=1.0, top_p=0.5)).nonzero().flatten().tolist()
    assert kept == [5, 90]
    logits_V.fill_(3.0)
    kept = _shaped(logits_V, SamplingParams(temperature=1.0, top_p=0.5)).nonzero().flatten().tolist()
    assert abs(len(kept) - _VOCAB // 2) <= 1
    assert kept == list(range(len(kept)))


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=2.0), SamplingParams(top_p=0.9), SamplingParams(top_k=9)]
)
@pytest.mark.parametrize("uniform", [0.0, 2**-24, 0.1, 0.5, 0.9, 1 - 2**-24])
def test_draws_are_by_inversion_and_never_of_weight_zero(uniform: float, params: SamplingParams) -> None:
    logits_V = _logits(_VOCAB, spread=2.0)
    logits_V[[0, -1]] = -torch.inf
    weights, _ = _weights(logits_V, params)
    probs_V = _shaped(logits_V, params).double()
    index, cdf_V = draw(weights, np.float32(uniform)), probs_V.cumsum(0)
    assert probs_V[index] > 0
    assert cdf_V[index] >= uniform - 1e-6
    assert cdf_V[index] - probs_V[index] <= uniform + 1e-6


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_p=0.9)])
def test_what_is_left_beyond_another_distribution(params: SamplingParams) -> None:
    logits_V, others_V = _logits(_VOCAB, spread=3.0), torch.softmax(_logits(_VOCAB, spread=3.0, seed=2).float(), dim=0)
    expected_V = (_shaped(logits_V, params) - others_V).clamp(min=0)
    weights, total = _weights(logits_V, params)
    left = subtract(weights, np.float32(total), others_V.numpy())
    torch.testing.assert_close(_masses(weights), expected_V)
    assert left == pytest.approx(float(expected_V.sum()), rel=1e-5)


def _round(seed: int, lengths: list[int], params: list[SamplingParams]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, the drafter's distributions, tokens drawn from them, and draws."""
    generator = torch.Generator().manual_seed(seed)
    num_rows, num_proposed = len(lengths), max(lengths)
    logits_BQV = _logits(num_rows, num_proposed + 1, _VOCAB, spread=4.0, seed=seed)
    near_BKV = logits_BQV[:, :num_proposed].float() + torch.randn(num_rows, num_proposed, _VOCAB, generator=generator)
    draft_BKV = shape_probs(near_BKV, _shaping(params))
    proposed_BK = torch.multinomial(draft_BKV.flatten(0, 1), 1, generator=generator).view(num_rows, num_proposed)
    return logits_BQV, draft_BKV, proposed_BK, torch.rand(num_rows, num_proposed + 1, generator=generator)


def _verdicts(
    logits_BQV: Tensor,
    params: list[SamplingParams],
    uniform_BQ: Tensor,
    proposal: Proposal | None = None,
    sampled: list[int] | None = None,
    rule: AcceptRule = "token",
) -> list[list[int]]:
    """Of the sampled rows (all of them); `params` and `uniform_BQ` are of all."""
    sampled = list(range(len(logits_BQV))) if sampled is None else sampled
    lengths = [0] * len(logits_BQV) if proposal is None else proposal.lengths
    case = SampledRows(
        rows=sampled,
        shapes=[RowShaping.of(params[row]) for row in sampled],
        lengths=[lengths[row] for row in sampled],
        uniform_SQ=uniform_BQ[sampled].tolist(),
        proposal=proposal,
        rule=rule,
    )
    found: list[list[int]] = fastest().logits(logits_BQV).judge(case).tolist()
    return found


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_draft_that_is_no_distribution_is_refused_and_the_target_drawn_from(rule: AcceptRule) -> None:
    params = [SamplingParams(temperature=1.0)]
    logits_BQV, draft_BKV, proposed_BK, uniform_BQ = _round(1, [2], params)
    expected_B = sampling.draw(shape_probs(logits_BQV, _shaping(params))[:, 0], uniform_BQ[:, 2])
    for garbage in (float("nan"), float("inf")):
        proposal = Proposal(proposed_BK, [2], draft_BKV.fill_(garbage), None)
        assert _verdicts(logits_BQV, params, uniform_BQ, proposal, rule=rule) == [[0, int(expected_B)]]


def test_where_nobody_proposes_a_token_is_drawn() -> None:
    params = SamplingParams(temperature=1.0, top_p=0.9)
    logits_BQV = _logits(1, 1, _VOCAB, spread=3.0)
    for uniform in (0.0, 2**-24, 0.3, 0.999):
        expected = draw(_weights(logits_BQV[0, 0], params)[0], np.float32(uniform))
        assert _verdicts(logits_BQV, [params], torch.tensor([[uniform]])) == [[0, expected]]


def test_what_is_emitted_has_the_targets_distribution() -> None:
    """4,000 first tokens; chance fails this once in 10,000 seeds, of which one is fixed."""
    params, num_rows, generator = SamplingParams(temperature=1.0, top_p=0.9), 400, torch.Generator().manual_seed(3)
    logits_V = torch.full((_VOCAB,), -20.0)
    logits_V[100:110] = torch.arange(10) * 0.3
    target_V = _shaped(logits_V.bfloat16(), params)
    draft_V = torch.zeros(_VOCAB)
    draft_V[100:105] = torch.tensor([0.1, 0.4, 0.2, 0.2, 0.1])  # of which some are beyond top-p, and others missing
    counts_V = torch.zeros(_VOCAB)
    logits_BQV = logits_V.bfloat16().expand(num_rows, 2, _VOCAB).contiguous()
    draft_BKV = draft_V.expand(num_rows, 1, _VOCAB).contiguous()
    for _ in range(10):
        proposed_BK = torch.multinomial(draft_V.expand(num_rows, -1), 1, generator=generator)
        proposal = Proposal(proposed_BK, [1] * num_rows, draft_BKV, None)
        own = _verdicts(logits_BQV, [params] * num_rows, torch.rand(num_rows, 2, generator=generator), proposal)
        num_accepted_S, next_S = torch.tensor(own).T
        first_S = torch.where(num_accepted_S > 0, proposed_BK[:, 0], next_S)
        counts_V.index_add_(0, first_S, torch.ones(num_rows))
    likely = target_V > 0
    assert counts_V[~likely].sum() == 0
    expected = target_V[likely].double() / target_V[likely].double().sum() * counts_V.sum().double()
    assert chisquare(counts_V[likely].double().numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_give_no_distribution_and_still_some_token(garbage: float) -> None:
    logits_V = _logits(_VOCAB, spread=3.0)
    logits_V[17] = garbage
    weights, _ = _weights(logits_V, SamplingParams(temperature=1.0, top_p=0.9))
    assert bool(np.isnan(weights.values_V).all())
    assert 0 <= draw(weights, np.float32(0.5)) < _VOCAB
