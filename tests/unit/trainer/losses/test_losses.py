"""Losses against dense references, their bounds, gradients and edge cases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.losses.losses import LOSSES, Teacher, coarsen, slot_table

N, V = 6, 11


def _random(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target_NV = (2 * torch.randn(N, V, generator=generator)).log_softmax(1)
    return target_NV, 2 * torch.randn(N, V, generator=generator)


def _teacher(target_NV: Tensor, top_k: int) -> Teacher:
    top = target_NV.topk(top_k, dim=1)
    return Teacher(top.indices, top.values, top.indices[:, 0])


def _dense(name: str, target_NV: Tensor, logits_NV: Tensor) -> Tensor:
    p, q = target_NV.exp(), logits_NV.softmax(1)
    m = (p + q) / 2
    alpha = torch.minimum(p, q).sum(1)
    share = torch.exp(-3.0 * alpha.detach())
    return {
        "lk": share * (p * (p / q).log()).sum(1) - (1.0 - share) * alpha.log(),
        "forward_kl": (p * (p / q).log()).sum(1),
        "reverse_kl": (q * (q / p).log()).sum(1),
        "jsd": 0.5 * (p * (p / m).log()).sum(1) + 0.5 * (q * (q / m).log()).sum(1),
        "total_variation": 1.0 - torch.minimum(p, q).sum(1),
        "hard_label": F.cross_entropy(logits_NV, target_NV.argmax(1), reduction="none"),
    }[name]


@pytest.mark.parametrize("name", LOSSES)
def test_full_vocabulary_gives_the_dense_loss_and_gradient(name: str) -> None:
    target_NV, logits_NV = _random()
    ours, reference = logits_NV.clone().requires_grad_(), logits_NV.clone().requires_grad_()
    loss_N = LOSSES[name](coarsen(ours, _teacher(target_NV, V), slot_table(torch.arange(V), V)))
    dense_N = _dense(name, target_NV, reference)
    torch.testing.assert_close(loss_N, dense_N, rtol=1e-4, atol=2e-4)
    torch.autograd.backward([loss_N.sum(), dense_N.sum()])
    torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "total_variation"])
def test_lumping_gives_a_lower_bound_that_rises_with_k(name: str) -> None:
    target_NV, logits_NV = _random(1)
    slots = slot_table(torch.arange(V), V)
    before_N = torch.zeros(N)
    for top_k in (1, 3, 7, V):
        loss_N = LOSSES[name](coarsen(logits_NV, _teacher(target_NV, top_k), slots))
        assert bool((loss_N >= before_N - 1e-4).all())
        before_N = loss_N
    assert bool((before_N <= _dense(name, target_NV, logits_NV) + 2e-4).all())


# "lk" takes a share as constant that a finite difference would vary.
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "lk"])
def test_gradients_match_finite_differences_on_a_reduced_vocabulary(name: str) -> None:
    target_NV, logits_NV = _random(2)
    vocab_ids_R = torch.tensor([0, 2, 3, 5, 7, 10])
    logits_NR = logits_NV[:, vocab_ids_R].requires_grad_()
    weights_N = torch.arange(1.0, N + 1)

    def loss(logits: Tensor) -> Tensor:
        coarse = coarsen(logits, _teacher(target_NV, 4), slot_table(vocab_ids_R, V))
        return (LOSSES[name](coarse) * weights_N).sum()

    (gradient_NR,) = torch.autograd.grad(loss(logits_NR), logits_NR)
    generator = torch.Generator().manual_seed(3)
    for _ in range(8):
        direction = torch.randn(logits_NR.shape, generator=generator)
        step = 2e-2 * direction / direction.norm()
        slope = (loss(logits_NR.detach() + step) - loss(logits_NR.detach() - step)) / 2
        assert float(slope) == pytest.approx(float((gradient_NR * step).sum()), rel=0.03, abs=2e-4)


def test_a_reduced_vocabulary_moves_unsayable_mass_into_everything_else() -> None:
    target_NV, logits_NV = _random(4)
    vocab_ids_R = torch.arange(0, V, 2)
    teacher = _teacher(target_NV, 6)
    coarse = coarsen(logits_NV[:, vocab_ids_R], teacher, slot_table(vocab_ids_R, V))
    sayable_NK = teacher.ids_NK % 2 == 0
    expected_NK = torch.where(sayable_NK, teacher.log_probs_NK.exp(), 0.0)
    torch.testing.assert_close(coarse.target_NC[:, :-1].exp(), expected_NK)
    torch.testing.assert_close(coarse.target_NC[:, -1].exp(), 1.0 - expected_NK.sum(1))
    draft_NV = torch.zeros(N, V)
    draft_NV[:, vocab_ids_R] = logits_NV[:, vocab_ids_R].softmax(1)
    named_NK = draft_NV.gather(1, teacher.ids_NK)
    torch.testing.assert_close(coarse.draft_NC[:, :-1].exp(), named_NK)
    torch.testing.assert_close(coarse.draft_NC[:, -1].exp(), 1.0 - named_NK.sum(1))


@pytest.mark.parametrize("name", LOSSES)
def test_extremes_stay_finite_and_learn_nothing_from_the_unsayable(name: str) -> None:
    vocab_ids_R = torch.tensor([1, 2, 3])
    teacher = Teacher(
        ids_NK=torch.tensor([[1, 9], [8, 9], [2, -1]]),
        log_probs_NK=torch.tensor([[0.0, -65504.0], [-0.1, -2.4], [0.001, -65504.0]]),
        emitted_N=torch.tensor([1, 8, 2]),
    )
    logits_NR = torch.tensor([[-200.0, 300.0, 0.0], [0.0, 0.0, 0.0], [500.0, -500.0, 0.0]], requires_grad=True)
    loss_N = LOSSES[name](coarsen(logits_NR, teacher, slot_table(vocab_ids_R, V)))
    torch.autograd.backward(loss_N.sum())
    assert bool(loss_N.isfinite().all())
    assert logits_NR.grad is not None and bool(logits_NR.grad.isfinite().all())
    assert not bool(logits_NR.grad[1].any())


def test_values_by_hand() -> None:
    """The target is sure of token 0, the drafter gives it one half and token 1 the other."""
    teacher = Teacher(torch.tensor([[0]]), torch.tensor([[0.0]]), torch.tensor([0]))
    coarse = coarsen(torch.tensor([[1.0, 1.0]]), teacher, torch.arange(2))
    assert float(LOSSES["forward_kl"](coarse)) == pytest.approx(math.log(2), abs=1e-4)
    assert float(LOSSES["total_variation"](coarse)) == pytest.approx(0.5, abs=1e-4)
    assert float(LOSSES["hard_label"](coarse)) == pytest.approx(math.log(2), abs=1e-4)
    assert float(LOSSES["jsd"](coarse)) == pytest.approx(0.75 * math.log(4 / 3), abs=1e-4)
