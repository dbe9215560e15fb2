"""Held-out acceptance and the decision taken on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from tests.kit.trainer_fakes import VOCAB_TOKENS, feature_student, make_outcome, model_student
from trainer.examples.batches import make_batches
from trainer.examples.examples import make_examples
from trainer.gate.gate import Measurement, decide, measure
from trainer.losses.acceptance import ChainSums, chain_sums, position_acceptance
from trainer.losses.losses import Teacher
from trainer.students.student import Student


def _target(seed: int, num: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(num, VOCAB_TOKENS, generator=generator)).log_softmax(1)


def _acceptance(target_NV: torch.Tensor, logits_NV: torch.Tensor, temperature: float, top_k: int) -> torch.Tensor:
    top = target_NV.topk(top_k, dim=1)
    teacher = Teacher(top.indices, top.values, top.indices[:, 0])
    vocab_ids = torch.arange(VOCAB_TOKENS)
    return position_acceptance(logits_NV, teacher, vocab_ids, top.indices, torch.full((len(target_NV),), temperature))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
def test_sampled_acceptance_is_the_overlap_at_the_query_s_temperature(temperature: float) -> None:
    target_NV, draft_NV = _target(0), _target(1)
    dense_N = torch.minimum((target_NV / temperature).softmax(1), (draft_NV / temperature).softmax(1)).sum(1)
    full_N = _acceptance(target_NV, draft_NV, temperature, VOCAB_TOKENS)
    torch.testing.assert_close(full_N, dense_N, rtol=1e-3, atol=1e-3)
    half_N = _acceptance(target_NV, draft_NV, temperature, VOCAB_TOKENS // 2)
    assert bool((half_N <= dense_N + 0.02).all()) and float(dense_N.mean() - half_N.mean()) < 0.1


def test_greedy_acceptance_is_the_share_of_equal_argmaxes() -> None:
    target_NV, draft_NV = _target(2), _target(2) + 0.5 * _target(3)
    acceptance_N = _acceptance(target_NV, draft_NV, 0.0, 4)
    assert acceptance_N.tolist() == (target_NV.argmax(1) == draft_NV.argmax(1)).float().tolist()


def test_greedy_and_sampled_queries_may_share_a_batch() -> None:
    target_NV, draft_NV = _target(4, 2), _target(5, 2)
    top = target_NV.topk(VOCAB_TOKENS, dim=1)
    teacher = Teacher(top.indices, top.values, top.indices[:, 0])
    mixed_N = position_acceptance(draft_NV, teacher, torch.arange(VOCAB_TOKENS), top.indices, torch.tensor([0.0, 1.0]))
    assert float(mixed_N[0]) == float(_acceptance(target_NV, draft_NV, 0.0, VOCAB_TOKENS)[0])
    assert float(mixed_N[1]) == pytest.approx(float(_acceptance(target_NV, draft_NV, 1.0, VOCAB_TOKENS)[1]))


def test_chains_count_a_depth_only_when_it_is_reached() -> None:
    """One row of four columns: depth 1 accepts columns 0 and 2, depth 2 column 1 only."""
    predicting = torch.tensor([[True, True, True, True]])
    first, second = torch.tensor([[1.0, 0.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    sums = chain_sums([first, second], predicting)
    assert sums.accepted_BD.tolist() == [[2.0, 1.0]]
    assert sums.reached_BD.tolist() == [[4.0, 2.0]]  # the chains that began at columns 0 and 2
    measured = Measurement(sums)
    assert (measured.num_positions, measured.acceptance_by_depth) == (4, (0.5, 0.5))
    assert measured.length == 1 + 3 / 4


@pytest.mark.parametrize("make_student", [feature_student, model_student])
def test_a_query_s_figures_do_not_depend_on_its_batch(make_student: Callable[[], Student]) -> None:
    student = make_student()
    outcomes = [make_outcome(f"q-{n}", output_ids=[(n * s) % 20 for s in range(4 + n)]) for n in range(4)]
    examples = [e for outcome in outcomes for e in make_examples(outcome, student.alignment, max_predicting=64)]
    together = measure(student, make_batches(examples, 1000)).sums
    pauses: list[None] = []
    alone = [measure(student, make_batches([example], 1000), lambda: pauses.append(None)).sums for example in examples]
    assert len(pauses) == len(examples)
    torch.testing.assert_close(together.accepted_BD, torch.cat([one.accepted_BD for one in alone]))
    torch.testing.assert_close(together.reached_BD, torch.cat([one.reached_BD for one in alone]))


@pytest.mark.parametrize("make_student", [feature_student, model_student])
def test_training_raises_held_out_acceptance_and_only_a_better_candidate_is_published(
    make_student: Callable[[], Student],
) -> None:
    student = make_student()
    outcomes = [make_outcome(f"q-{n}", temperature=0.7 * (n % 2)) for n in range(3)]
    examples = [e for outcome in outcomes for e in make_examples(outcome, student.alignment, max_predicting=64)]
    batches = make_batches(examples, 64)
    before = measure(student, batches)
    optimizer = torch.optim.AdamW(student.parameters(), 5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        torch.autograd.backward(student.loss_terms(batches[0]).losses_N.sum())
        optimizer.step()
    after = measure(student, batches)
    assert after.acceptance > before.acceptance + 0.3 and after.num_positions == 12
    assert len(after.acceptance_by_depth) == 2
    better = decide({"": (after, before)}, margin=0.0, num_records=3)
    assert better.published and better.figures["published"] == 1.0
    assert better.figures["depth_1"] == better.figures["candidate"] == after.acceptance
    assert better.figures["serving"] == before.acceptance and better.figures["records"] == 3.0
    assert better.figures["length"] > better.figures["serving_length"] and not better.worse and better.is_promising
    back = decide({"": (before, after)}, margin=0.0, num_records=3)
    assert back.worse and not back.published and not back.is_promising


def _measured(accepted_N: Sequence[float], positions: int = 30) -> Measurement:
    """Records of so many positions each, of which so many accept the only proposal."""
    accepted_N1 = torch.tensor(accepted_N, dtype=torch.float64)[:, None]
    return Measurement(ChainSums(accepted_N1, torch.full_like(accepted_N1, positions)))


def test_a_small_gain_is_sure_where_every_query_has_it() -> None:
    hard_and_easy = [2.0, 28.0, 9.0, 20.0, 5.0, 14.0]
    serving, candidate = _measured(hard_and_easy), _measured([one + 1 for one in hard_and_easy])
    decision = decide({"": (candidate, serving)}, margin=0.0, num_records=6)
    assert decision.published and not decision.worse
    assert decision.figures["gain_low"] == pytest.approx(1 / 30) == pytest.approx(decision.figures["gain_high"])
    assert decide({"": (serving, candidate)}, margin=0.0, num_records=6).worse
    assert not decide({"": (candidate, serving)}, margin=0.04, num_records=6).published
    assert not decide({"": (serving, candidate)}, margin=0.04, num_records=6).worse


def test_a_larger_gain_by_one_query_alone_is_not_sure() -> None:
    serving, candidate = _measured([10.0] * 6), _measured([30.0, 9.0, 11.0, 9.0, 10.0, 11.0])
    assert candidate.length > serving.length + 0.1
    decision = decide({"": (candidate, serving)}, margin=0.0, num_records=6)
    assert decision.figures["gain_low"] < 0.0 < decision.figures["gain_high"]
    assert not decision.published and not decision.worse


def test_a_loss_that_is_certain_but_small_is_trained_on_from() -> None:
    """As after a single step, which undone again and again would lead nowhere."""
    serving, candidate = _measured([10.0] * 6), _measured([9.5] * 6)
    decision = decide({"": (candidate, serving)}, margin=0.0, num_records=6)
    assert decision.figures["gain_high"] < 0.0 and candidate.length > serving.length - 0.02
    assert not decision.published and not decision.worse
    assert decide({"": (_measured([9.3] * 6), serving)}, margin=0.0, num_records=6).worse


def test_a_domain_that_certainly_loses_forbids_what_others_gain() -> None:
    before, loses = _measured([10.0] * 6), _measured([9.0] * 6)
    flood = _measured([18.0] * 24), _measured([10.0] * 24)
    by_domain = {"flood": flood, "chat": (loses, before)}
    decision = decide(by_domain, margin=0.0, num_records=12)
    assert decision.figures["gain_low"] > 0.0 and decision.losers == ("chat",)
    assert not decision.published and not decision.worse and decision.figures["published"] == 0.0
    by_domain["chat"] = (_measured([9.5] * 6), before)
    assert decide(by_domain, margin=0.0, num_records=12).published, "less than 0.02 is borne"
    by_domain["chat"] = (_measured([4.0, 16.0, 4.0, 13.0, 7.0, 10.0]), before)
    assert decide(by_domain, margin=0.0, num_records=12).published, "what one query may have done is not certain"
    by_domain["chat"] = (_measured([9.0, 9.0]), _measured([10.0, 10.0]))
    assert decide(by_domain, margin=0.0, num_records=8).published, "two records say nothing for certain"


def test_what_does_not_differ_is_neither_better_nor_worse() -> None:
    same = _measured([3.0, 20.0, 8.0])
    decision = decide({"": (same, same)}, margin=0.0, num_records=3)
    assert not decision.published and not decision.worse


def test_equal_drafters_are_seldom_published() -> None:
    rng = np.random.default_rng(0)
    published = 0
    for _ in range(200):
        skill_N = rng.uniform(0.2, 0.8, 24)
        one, other = (_measured(rng.binomial(30, skill_N).tolist()) for _ in range(2))
        published += decide({"": (one, other)}, margin=0.0, num_records=24).published
    assert published < 0.05 * 200 + 8, "one interval of forty lies above zero by chance"
