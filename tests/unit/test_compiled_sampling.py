"""Sampled rows by compiled loops: the distributions, verdicts and draws that tensors give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from osd import sampling
from osd.models.compiled.kernels import kernels
from osd.rejection import reject_tokenwise
from osd.sampling import Shaping, shape_probs
from osd.types import SamplingParams

if kernels() is None:
    pytest.skip("numba is not installed", allow_module_level=True)

from osd.models.compiled.shaping import draw, shape
from osd.models.compiled.verdicts import shapes_of, verdicts

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


def _shaping(params: list[SamplingParams], vocab_tokens: int = _VOCAB) -> Shaping:
    return Shaping.of(params, vocab_tokens, torch.device("cpu"))


def _logits(*shape: int, spread: float, seed: int = 1) -> Tensor:
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread).bfloat16()


def _shaped(logits_V: Tensor, params: SamplingParams) -> Tensor:
    probs_V = np.full(len(logits_V), 7.0, np.float32)  # whatever was there
    shape(logits_V.view(torch.uint16).numpy(), shapes_of(_shaping([params], len(logits_V))), 0, probs_V)
    return torch.from_numpy(probs_V)


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


@pytest.mark.parametrize("uniform", [0.0, 0.1, 0.5, 0.9, 1 - 2**-24])
def test_draws_are_by_inversion_and_never_of_weight_zero(uniform: float) -> None:
    weights_V = torch.rand(_VOCAB, generator=torch.Generator().manual_seed(2))
    weights_V[weights_V < 0.7] = 0.0
    weights_V[[0, -1]] = 0.0
    index = draw(weights_V.numpy(), np.float32(uniform))
    cdf_V = weights_V.double().cumsum(0) / weights_V.double().sum()
    assert weights_V[index] > 0
    assert cdf_V[index] >= uniform - 1e-6
    assert cdf_V[index] - weights_V[index] / weights_V.double().sum() <= uniform + 1e-6


def _round(seed: int, lengths: list[int], params: list[SamplingParams]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, the drafter's distributions, tokens drawn from them, and draws."""
    generator = torch.Generator().manual_seed(seed)
    num_rows, num_proposed = len(lengths), max(lengths)
    logits_BQV = _logits(num_rows, num_proposed + 1, _VOCAB, spread=4.0, seed=seed)
    near_BKV = logits_BQV[:, :num_proposed].float() + torch.randn(num_rows, num_proposed, _VOCAB, generator=generator)
    draft_BKV = shape_probs(near_BKV, _shaping(params))
    proposed_BK = torch.multinomial(draft_BKV.flatten(0, 1), 1, generator=generator).view(num_rows, num_proposed)
    return logits_BQV, draft_BKV, proposed_BK, torch.rand(num_rows, num_proposed + 1, generator=generator)


@pytest.mark.usefixtures("num_threads")
def test_verdicts_are_those_of_the_tensors() -> None:
    """Some rows of a round are sampled, each in a manner and of a length of its own."""
    params = [SamplingParams(temperature=t, min_p=p) for t, p in [(1.0, 0.0), (0.7, 0.0), (1.3, 0.01), (1.0, 0.05)]]
    lengths, sampled, seen = [3, 0, 1, 2], [0, 1, 3], set()
    for seed in range(12):
        logits_BQV, draft_BKV, proposed_BK, uniform_BQ = _round(seed, lengths, params)
        shaping = _shaping([params[row] for row in sampled])
        sampled_lengths = [lengths[row] for row in sampled]
        own_S2 = verdicts(
            logits_BQV, sampled, sampled_lengths, proposed_BK, draft_BKV, shaping, uniform_BQ[sampled].contiguous()
        )
        expected = reject_tokenwise(
            shape_probs(logits_BQV[sampled], shaping),
            draft_BKV[sampled],
            proposed_BK[sampled],
            torch.tensor(sampled_lengths),
            uniform_BQ[sampled],
        )
        assert torch.equal(own_S2, torch.stack(expected, dim=1))
        seen.update(own_S2[:, 0].tolist())
    assert seen == {0, 1, 2, 3}


def test_a_draft_that_is_no_distribution_is_refused_and_the_target_drawn_from() -> None:
    params = [SamplingParams(temperature=1.0)]
    logits_BQV, draft_BKV, proposed_BK, uniform_BQ = _round(1, [2], params)
    expected_B = sampling.draw(shape_probs(logits_BQV, _shaping(params))[:, 0], uniform_BQ[:, 2])
    for garbage in (float("nan"), float("inf")):
        draft_BKV.fill_(garbage)
        own_S2 = verdicts(logits_BQV, [0], [2], proposed_BK, draft_BKV, _shaping(params), uniform_BQ)
        assert own_S2.tolist() == [[0, int(expected_B)]]


def test_where_nobody_proposes_a_token_is_drawn() -> None:
    params = [SamplingParams(temperature=1.0, top_p=0.9)]
    logits_BQV = _logits(1, 1, _VOCAB, spread=3.0)
    nothing_BK = torch.empty(1, 0, dtype=torch.long)
    for uniform in (0.0, 0.3, 0.999):
        own_S2 = verdicts(logits_BQV, [0], [0], nothing_BK, None, _shaping(params), torch.tensor([[uniform]]))
        probs_V = _shaped(logits_BQV[0, 0], params[0])
        assert own_S2.tolist() == [[0, draw(probs_V.numpy(), np.float32(uniform))]]


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
        uniform_BQ = torch.rand(num_rows, 2, generator=generator)
        rows = list(range(num_rows))
        shaping = _shaping([params] * num_rows)
        own_S2 = verdicts(logits_BQV, rows, [1] * num_rows, proposed_BK, draft_BKV, shaping, uniform_BQ)
        first_S = torch.where(own_S2[:, 0] > 0, proposed_BK[:, 0], own_S2[:, 1])
        counts_V.index_add_(0, first_S, torch.ones(num_rows))
    likely = target_V > 0
    assert counts_V[~likely].sum() == 0
    expected = target_V[likely].double() / target_V[likely].double().sum() * counts_V.sum().double()
    assert chisquare(counts_V[likely].double().numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_give_no_distribution_and_still_some_token(garbage: float) -> None:
    logits_V = _logits(_VOCAB, spread=3.0)
    logits_V[17] = garbage
    probs_V = _shaped(logits_V, SamplingParams(temperature=1.0, top_p=0.9))
    assert bool(probs_V.isnan().all())
    assert 0 <= draw(probs_V.numpy(), np.float32(0.5)) < _VOCAB
