"""A loss over a sample of the head's rows stands for the loss over all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.losses.head_sample import HeadSample, sample_head
from trainer.losses.losses import LOSSES, Teacher, coarsen, slot_table

_HIDDEN, _VOCAB, _TARGET_VOCAB, _POSITIONS, _TOP = 32, 4096, 5000, 24, 8


def _whole() -> tuple[HeadSample, Tensor]:
    generator = torch.Generator().manual_seed(0)
    vocab_ids_R = torch.randperm(_TARGET_VOCAB, generator=generator)[:_VOCAB].sort().values
    head_RH = torch.randn(_VOCAB, _HIDDEN, generator=generator)
    bias_R = torch.randn(_VOCAB, generator=generator)
    return HeadSample(head_RH, bias_R, slot_table(vocab_ids_R, _TARGET_VOCAB)), vocab_ids_R


def _features() -> Tensor:
    return 0.5 * torch.randn(_POSITIONS, _HIDDEN, generator=torch.Generator().manual_seed(1))


def _teacher(head: HeadSample, vocab_ids_R: Tensor) -> Teacher:
    """Likely tokens of another feature; some are outside the drafter's vocabulary."""
    generator = torch.Generator().manual_seed(2)
    other_NH = _features() + 0.3 * torch.randn(_POSITIONS, _HIDDEN, generator=generator)
    top = (other_NH @ head.head_SH.T).log_softmax(1).topk(_TOP, dim=1)
    ids_NK = vocab_ids_R[top.indices]
    ids_NK[:3, -1] = (head.slot_V == _VOCAB).nonzero()[:3, 0]
    return Teacher(ids_NK, top.values, ids_NK[:, 0])


def _loss_and_gradient(name: str, head: HeadSample, teacher: Teacher) -> tuple[Tensor, Tensor]:
    feature_NH = _features().requires_grad_()
    logits_NS = torch.nn.functional.linear(feature_NH, head.head_SH, head.bias_S)
    loss = LOSSES[name](coarsen(logits_NS, teacher, head.slot_V)).sum()
    [gradient_NH] = torch.autograd.grad(loss, [feature_NH])
    return loss.detach(), gradient_NH


@pytest.mark.parametrize("name", ["forward_kl", "lk", "hard_label"])
def test_its_gradient_is_close_to_that_of_the_whole_and_closer_on_average(name: str) -> None:
    head, vocab_ids_R = _whole()
    teacher = _teacher(head, vocab_ids_R)
    _, exact_NH = _loss_and_gradient(name, head, teacher)
    wanted = torch.cat((teacher.ids_NK.flatten(), teacher.emitted_N))
    found = []
    for seed in range(100):
        sample = sample_head(head, vocab_ids_R, wanted, seed)
        assert len(sample.head_SH) < 0.2 * _VOCAB
        found.append(_loss_and_gradient(name, sample, teacher)[1])
    error = float(torch.stack([(one - exact_NH).norm() / exact_NH.norm() for one in found]).mean())
    of_mean = float((torch.stack(found).mean(0) - exact_NH).norm() / exact_NH.norm())
    assert error < 0.5 and of_mean < 0.5 * error, "chance evens out, next to a small bias"


def test_wanted_tokens_keep_their_logits_and_others_have_no_index() -> None:
    head, vocab_ids_R = _whole()
    wanted = torch.tensor([[int(vocab_ids_R[5]), -1], [int(vocab_ids_R[900]), int(vocab_ids_R[5])]])
    sample = sample_head(head, vocab_ids_R, wanted, 0)
    size = len(sample.head_SH)
    assert size == 2 + 512 and int((sample.slot_V < size).sum()) == 2
    assert head.bias_S is not None and sample.bias_S is not None
    for row in (5, 900):
        slot = int(sample.slot_V[vocab_ids_R[row]])
        assert torch.equal(sample.head_SH[slot], head.head_SH[row])
        assert float(sample.bias_S[slot]) == float(head.bias_S[row])
    raised = (
        sample.bias_S[2:].sum() - torch.stack([head.bias_S[_row_of(head, one)] for one in sample.head_SH[2:]]).sum()
    )
    assert float(raised) / 512 == pytest.approx(torch.log(torch.tensor((_VOCAB - 2) / 512)).item(), rel=1e-4)


def _row_of(head: HeadSample, row_H: Tensor) -> int:
    return int((head.head_SH == row_H).all(1).nonzero()[0, 0])


def test_equal_batches_have_equal_samples() -> None:
    head, vocab_ids_R = _whole()
    one, same, other = (sample_head(head, vocab_ids_R, vocab_ids_R[:4], seed) for seed in (7, 7, 8))
    assert torch.equal(one.head_SH, same.head_SH) and not torch.equal(one.head_SH, other.head_SH)


def test_a_small_vocabulary_is_used_as_a_whole() -> None:
    head, vocab_ids_R = _whole()
    assert sample_head(head, vocab_ids_R, vocab_ids_R[:3500], 0) is head
