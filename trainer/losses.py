"""Distillation losses between the target's sparse top-K distribution and the drafter's logits.

Both distributions are coarsened to the same K + 1 outcomes: the K teacher ids that the drafter can say, and
"everything else" in one bucket. Lumping is a channel, so by the data-processing inequality every divergence below is a
lower bound of the one over the whole vocabulary, and equal to it when the K ids cover the vocabulary. What is left is
textbook: f-divergences on `[N, K + 1]`.

Shapes: N positions, K teacher ids, C = K + 1 coarse outcomes, R the drafter's vocabulary, V the target's vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.named_logits import LOG_ZERO, name_logits

_LOWEST_REST = 1e-6
"""Least target mass of the "everything else" bucket; float16 log-probabilities may sum to a little over 1."""


class Teacher(NamedTuple):
    """What the target said at N positions; a token id of -1 stands for none."""

    ids_NK: Tensor
    """int64: its most likely tokens."""
    log_probs_NK: Tensor
    """float32: their log-probabilities at temperature 1."""
    emitted_N: Tensor
    """int64: the token that the query got."""


class Coarse(NamedTuple):
    """Both sides' log-probabilities over the same K + 1 outcomes; the last is "everything else"."""

    target_NC: Tensor
    draft_NC: Tensor
    emitted_N: Tensor
    """The drafter's log-probability of the emitted token; 0 where it cannot say it, so that nothing is learnt there."""


def coarsen(logits_NR: Tensor, teacher: Teacher, slot_V: Tensor) -> Coarse:
    """Lump both distributions onto the teacher's ids.

    Args:
        logits_NR: the drafter's logits.
        teacher: the target's top-K for the same positions. Ids that the drafter cannot say join "everything else".
        slot_V: int64, the place of each token id in the drafter's vocabulary, R where it has none.
    """
    size = logits_NR.shape[1]
    slots_NK = slots_of(teacher.ids_NK, slot_V, size)
    slots_N1 = slots_of(teacher.emitted_N, slot_V, size)[:, None]
    named_NK, emitted_N1, rest_N1 = name_logits(logits_NR, slots_NK, slots_N1)
    coarse_NC = torch.cat((named_NK, rest_N1), dim=1)
    emitted_N1 = (emitted_N1 - coarse_NC.logsumexp(1, keepdim=True)).masked_fill(slots_N1 == size, 0.0)
    log_probs_NK = teacher.log_probs_NK.float().masked_fill(slots_NK == size, LOG_ZERO)
    left_N1 = (1.0 - log_probs_NK.exp().sum(1, keepdim=True)).clamp(min=_LOWEST_REST)
    # A drafter whose whole vocabulary is named has nothing else to say, and is not blamed for it.
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
    """1 - the probability that a drawn proposal is accepted, [N] (DistillSpec, Zhou et al. 2023, arXiv 2310.08461)."""
    return 0.5 * (coarse.target_NC.exp() - coarse.draft_NC.exp()).abs().sum(1)


def hard_label(coarse: Coarse) -> Tensor:
    """Cross-entropy on the emitted token, [N]: it is a draw from the target, so the mean is unbiased."""
    return -coarse.emitted_N


LOSSES: dict[str, Callable[[Coarse], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
    "total_variation": total_variation,
    "hard_label": hard_label,
}


def slot_table(vocab_ids_R: Tensor, vocab_tokens: int) -> Tensor:
    """`slot_V` for `coarsen`: int64 [V], the inverse of `vocab_ids_R`, R where a token is not in it."""
    slot_V = torch.full((vocab_tokens,), len(vocab_ids_R), dtype=torch.long, device=vocab_ids_R.device)
    slot_V[vocab_ids_R] = torch.arange(len(vocab_ids_R), device=vocab_ids_R.device)
    return slot_V


def slots_of(ids: Tensor, slot_V: Tensor, absent: int) -> Tensor:
    """The place of each token id in the drafter's vocabulary; `absent` where it has none, or the id is none (-1)."""
    return torch.where(ids >= 0, slot_V[ids.clamp(min=0)], absent)


def _kl(log_p_NC: Tensor, log_q_NC: Tensor) -> Tensor:
    return (log_p_NC.exp() * (log_p_NC - log_q_NC)).sum(1)
