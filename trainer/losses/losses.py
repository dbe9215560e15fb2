"""Distillation losses between the target's sparse top-K distribution and the drafter's logits.

Both distributions are coarsened to the same K + 1 outcomes: the K teacher ids that are in the drafter's vocabulary, and
one bucket "everything else". By the data-processing inequality, each divergence below is a lower bound of the one over
the whole vocabulary, and equals it when the K ids cover the vocabulary. The losses are f-divergences on `[N, K + 1]`.

Shapes: N positions, K teacher ids, C = K + 1 coarse outcomes, R the drafter's vocabulary, V the target's vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.losses.gathered_logits import LOG_ZERO, gather_logits

_LOWEST_REST = 1e-6
"""Least target probability of the "everything else" bucket; float16 log-probabilities may sum to more than 1."""

_LK_DECAY = 3.0
"""The authors' value."""


class Teacher(NamedTuple):
    """The target's side of N positions; token id -1 stands for no token."""

    ids_NK: Tensor
    """int64: the target's most likely tokens."""
    log_probs_NK: Tensor
    """float32: their log-probabilities at temperature 1."""
    emitted_N: Tensor
    """int64: the token that was emitted."""


class Coarse(NamedTuple):
    """Both sides' log-probabilities over the same K + 1 outcomes; the last is "everything else"."""

    target_NC: Tensor
    draft_NC: Tensor
    emitted_N: Tensor
    """The drafter's log-probability of the emitted token; 0, without a gradient, if it is not in its vocabulary."""


def coarsen(logits_NR: Tensor, teacher: Teacher, slot_V: Tensor) -> Coarse:
    """Reduce both distributions to the teacher's K ids and "everything else".

    Args:
        logits_NR: the drafter's logits.
        teacher: the target's top-K at the same positions. Ids outside the drafter's vocabulary go to the bucket.
        slot_V: int64, index of each token id in the drafter's vocabulary, R where it is not in it.
    """
    size = logits_NR.shape[1]
    slots_NK = slots_of(teacher.ids_NK, slot_V, size)
    slots_N1 = slots_of(teacher.emitted_N, slot_V, size)[:, None]
    gathered_NK, emitted_N1, rest_N1 = gather_logits(logits_NR, slots_NK, slots_N1)
    coarse_NC = torch.cat((gathered_NK, rest_N1), dim=1)
    emitted_N1 = (emitted_N1 - coarse_NC.logsumexp(1, keepdim=True)).masked_fill(slots_N1 == size, 0.0)
    log_probs_NK = teacher.log_probs_NK.float().masked_fill(slots_NK == size, LOG_ZERO)
    left_N1 = (1.0 - log_probs_NK.exp().sum(1, keepdim=True)).clamp(min=_LOWEST_REST)
    # If the teacher's ids cover the drafter's whole vocabulary, its bucket is empty, and does not enter the loss.
    nothing_else_N1 = (slots_NK < size).sum(1, keepdim=True) == size
    target_NC = torch.cat((log_probs_NK, left_N1.log().masked_fill(nothing_else_N1, LOG_ZERO)), dim=1).log_softmax(1)
    return Coarse(target_NC, coarse_NC.log_softmax(1), emitted_N1[:, 0])


def forward_kl(coarse: Coarse) -> Tensor:
    """KL(target || draft), per position [N]: knowledge distillation (Hinton et al. 2015, arXiv 1503.02531)."""
    return _kl(coarse.target_NC, coarse.draft_NC)


def reverse_kl(coarse: Coarse) -> Tensor:
    """KL(draft || target), [N]: mode-seeking (MiniLLM, Gu et al. 2023, arXiv 2306.08543)."""
    return _kl(coarse.draft_NC, coarse.target_NC)


def jsd(coarse: Coarse) -> Tensor:
    """Jensen-Shannon divergence, [N], at most log 2 (GKD, Agarwal et al. 2023, arXiv 2306.13649)."""
    mixed_NC = torch.logaddexp(coarse.target_NC, coarse.draft_NC) - math.log(2.0)
    return 0.5 * (_kl(coarse.target_NC, mixed_NC) + _kl(coarse.draft_NC, mixed_NC))


def total_variation(coarse: Coarse) -> Tensor:
    """1 - P(a drawn proposal is accepted), [N] (DistillSpec, Zhou et al. 2023, arXiv 2310.08461)."""
    return 0.5 * (coarse.target_NC.exp() - coarse.draft_NC.exp()).abs().sum(1)


def lk(coarse: Coarse) -> Tensor:
    """Between `forward_kl` and -log of the probability that a drawn proposal is accepted, [N] (LK losses, 2602.23881).

    The lower that probability, the more the divergence counts, whose gradient does not vanish there.
    """
    acceptance_N = 1.0 - total_variation(coarse)
    share_N = torch.exp(-_LK_DECAY * acceptance_N.detach())
    return share_N * forward_kl(coarse) - (1.0 - share_N) * acceptance_N.clamp(min=_LOWEST_REST).log()


def hard_label(coarse: Coarse) -> Tensor:
    """Cross-entropy on the emitted token, [N]; unbiased, since that token is drawn from the target."""
    return -coarse.emitted_N


LOSSES: dict[str, Callable[[Coarse], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "total_variation": total_variation,
    "lk": lk,
    "hard_label": hard_label,
}


def slot_table(vocab_ids_R: Tensor, vocab_tokens: int) -> Tensor:
    """`slot_V` for `coarsen`: int64 [V], the inverse of `vocab_ids_R`; R where a token is not in the vocabulary."""
    slot_V = torch.full((vocab_tokens,), len(vocab_ids_R), dtype=torch.long, device=vocab_ids_R.device)
    slot_V[vocab_ids_R] = torch.arange(len(vocab_ids_R), device=vocab_ids_R.device)
    return slot_V


def slots_of(ids: Tensor, slot_V: Tensor, absent: int) -> Tensor:
    """Index of each token id in the drafter's vocabulary; `absent` where it is not in it, or the id is -1."""
    return torch.where(ids >= 0, slot_V[ids.clamp(min=0)], absent)


def _kl(log_p_NC: Tensor, log_q_NC: Tensor) -> Tensor:
    return (log_p_NC.exp() * (log_p_NC - log_q_NC)).sum(1)
