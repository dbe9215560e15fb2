"""What every back end answers about logits is what the reference does, or torch in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from osd.kernels.reference.logits import TorchLogits
from osd.records.proposal import Proposal
from osd.records.query import SamplingParams
from osd.records.rules import AcceptRule
from osd.verify.logits import SampledRows
from osd.verify.shaping import BatchShaping, RowShaping, shape_probs
from tests.unit.kernels.conftest import Case

_VOCAB = 40_000
_PARAMS = [SamplingParams(temperature=t, min_p=p) for t, p in [(1.0, 0.0), (0.7, 0.0), (1.3, 0.01), (1.0, 0.05)]]


def _logits(case: Case, *shape: int, spread: float = 4.0, shift: float = 0.0, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * spread + shift).to(case.device, case.dtype)


def _host(numbers: Any) -> Tensor:
    return torch.as_tensor(numbers).cpu()


@pytest.mark.parametrize("vocab_tokens", [33, 49_152])
@pytest.mark.parametrize("shift", [0.0, -300.0])
def test_the_greatest_is_found(case: Case, shift: float, vocab_tokens: int) -> None:
    logits_BQV = _logits(case, 5, 3, vocab_tokens, shift=shift)
    best_BQ = _host(case.backend.logits(logits_BQV).best_BQ)
    assert best_BQ.dtype == torch.long
    assert torch.equal(best_BQ, _host(logits_BQV).float().argmax(dim=-1))
    assert torch.equal(_host(case.backend.most_likely(logits_BQV)), best_BQ)


@pytest.mark.parametrize("vocab_tokens", [100, 40_000])
def test_of_equal_ones_the_first_is_taken(case: Case, vocab_tokens: int) -> None:
    logits_BQV = torch.full((2, 1, vocab_tokens), -1.0, device=case.device, dtype=case.dtype)
    logits_BQV[0, 0, [90, vocab_tokens - 1]] = 2.0
    assert case.backend.logits(logits_BQV).best_BQ.tolist() == [[90], [0]]


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_a_position_with_logits_that_are_no_numbers_is_told(case: Case, garbage: float) -> None:
    logits_BQV = _logits(case, 2, 3, _VOCAB)
    logits_BQV[1, 2, 17] = garbage
    logits_BQV[0, 1] = garbage
    assert case.backend.logits(logits_BQV).is_finite_BQ.tolist() == [[True, False, True], [True, True, False]]


@pytest.mark.parametrize("shift", [0.0, 1e4, -300.0])
@pytest.mark.parametrize("vocab_tokens", [640, 6_401, 50_000])
def test_log_probabilities_are_those_of_float64(case: Case, vocab_tokens: int, shift: float) -> None:
    """Also where the most likely are all in the last of the chunks that some look through, or few are possible."""
    logits_BQV = _logits(case, 3, 2, vocab_tokens, shift=shift)
    logits_BQV[1, 0, -20:] += 9.0
    logits_BQV[2, 1] = -torch.inf
    logits_BQV[2, 1, [5, vocab_tokens - 1]] = 1.0
    places, chosen = [5, 0, 2, 3], [5, 0, vocab_tokens - 1, 17]
    chosen_N, ids_NK, logprobs_NK, wait = case.backend.logits(logits_BQV).rank(places, chosen, 16)
    wait()
    exact_NV = torch.log_softmax(_host(logits_BQV).double().flatten(0, 1)[places], dim=-1)
    likely_NK = exact_NV.topk(16).values
    finite = likely_NK.isfinite()
    # float32 holds logits of 1e4 to 1e-3, and the logarithm of a sum is added to one of them.
    atol = 2e-4 + (2e-3 if shift > 1e3 else 0.0)
    torch.testing.assert_close(_host(logprobs_NK)[finite].double(), likely_NK[finite], atol=atol, rtol=1e-5)
    ids_NK = _host(ids_NK)
    assert ids_NK.dtype == torch.int32 and bool(((ids_NK >= 0) & (ids_NK < vocab_tokens)).all())
    own_NK = exact_NV.gather(1, ids_NK.long())
    torch.testing.assert_close(own_NK[finite], likely_NK[finite], atol=atol, rtol=1e-5)
    exact_N = exact_NV.gather(1, torch.tensor(chosen)[:, None])[:, 0]
    torch.testing.assert_close(_host(chosen_N).double(), exact_N, atol=atol, rtol=1e-5)
    assert all(len(set(ids)) == 16 for ids, one in zip(ids_NK.tolist(), finite, strict=True) if bool(one.all()))


def _round(case: Case, seed: int, lengths: list[int]) -> tuple[Tensor, Proposal, Tensor]:
    """Logits, a proposal that was drawn from distributions near them, and uniform draws."""
    generator = torch.Generator().manual_seed(seed)
    num_rows, num_proposed = len(lengths), max(lengths)
    logits_BQV = _logits(case, num_rows, num_proposed + 1, _VOCAB, seed=seed)
    noise_BKV = torch.randn(num_rows, num_proposed, _VOCAB, generator=generator)
    near_BKV = _host(logits_BQV)[:, :num_proposed].float() + noise_BKV
    shaping = BatchShaping.of([RowShaping.of(one) for one in _PARAMS], _VOCAB, torch.device("cpu"))
    draft_BKV = shape_probs(near_BKV, shaping)
    proposed_BK = torch.multinomial(draft_BKV.flatten(0, 1), 1, generator=generator).view(num_rows, num_proposed)
    proposal = Proposal(proposed_BK.to(case.device), lengths, draft_BKV.to(case.device), None)
    return logits_BQV, proposal, torch.rand(num_rows, num_proposed + 1, generator=generator)


@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("is_drawn", [True, False])
def test_verdicts_are_the_references(case: Case, rule: AcceptRule, is_drawn: bool) -> None:
    """Some rows of a round are sampled, each in a manner and of a length of its own; some rounds propose nothing."""
    lengths, rows = [3, 0, 1, 2], [0, 1, 3]
    seen: set[int] = set()
    for seed in range(12):
        logits_BQV, proposal, uniform_BQ = _round(case, seed, lengths)
        if not is_drawn:  # each token was its drafter's only candidate, and is right every other time
            proposal = replace(proposal, draft_probs_BKV=None)
            judged_BKV = logits_BQV[:, :3]
            most_BK1 = judged_BKV.amax(dim=2, keepdim=True) + 2
            judged_BKV.scatter_(2, torch.as_tensor(proposal.token_ids_BK)[:, :, None], most_BK1)
        sampled = SampledRows(
            rows=rows,
            shapes=[RowShaping.of(_PARAMS[row]) for row in rows],
            lengths=[lengths[row] for row in rows],
            uniform_SQ=uniform_BQ[rows].tolist(),
            proposal=proposal,
            rule=rule,
        )
        expected = TorchLogits(logits_BQV).judge(sampled).tolist()
        assert case.backend.logits(logits_BQV).judge(sampled).tolist() == expected
        seen.update(num_accepted for num_accepted, _ in expected)
    assert seen == {0, 1, 2, 3}
    alone = sampled._replace(lengths=[0] * 3, proposal=None, uniform_SQ=uniform_BQ[rows, :1].tolist())
    expected = TorchLogits(logits_BQV).judge(alone).tolist()
    assert case.backend.logits(logits_BQV).judge(alone).tolist() == expected


def test_a_first_position_is_replaced(case: Case) -> None:
    logits = case.backend.logits(_logits(case, 3, 2, _VOCAB))
    other = case.backend.logits(_logits(case, 1, 1, _VOCAB, seed=2))
    before = logits.best_BQ.tolist()
    logits.replace_first(1, other)
    [[best]] = other.best_BQ.tolist()
    assert best != before[1][0]
    assert logits.best_BQ.tolist() == [before[0], [best, before[1][1]], before[2]]


def test_other_values_take_the_place_of_logits(case: Case) -> None:
    logits_BQV = _logits(case, 1, 2, _VOCAB)
    changed_BQV = logits_BQV.float()
    changed_BQV[0, 1, 7] = 1e3
    found = case.backend.logits(logits_BQV).replaced(changed_BQV)
    assert int(found.best_BQ[0, 1]) == 7 and found.is_finite_BQ.tolist() == [[True, True]]
