"""Held-out acceptance: the share of the target's tokens that a drafter proposes correctly, by depth of its chain.

Shapes: N positions, B rows, Q predicting columns, D depths, K teacher ids, R the drafter's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.losses.losses import Teacher

_LOWEST_TEMPERATURE = 1e-3


class ChainSums(NamedTuple):
    """Sums over each row's positions, float64 [B, D]; acceptance at depth d, among positions that reach it: accepted /
    reached.


    Chains begin at every position, so the first depth's `reached` is the number of positions, and the acceptance length
    is 1 + (accepted, over all depths) / positions.
    """

    accepted_BD: Tensor
    reached_BD: Tensor


def position_acceptance(
    logits_NR: Tensor, teacher: Teacher, vocab_ids_R: Tensor, slots_NK: Tensor, temperature_N: Tensor
) -> Tensor:
    """The probability [N] that the drafter's first proposal at each position is accepted.

    For greedy queries (temperature 0): 1 where the drafter's most likely token is the emitted one. For sampled ones:
    the sum of min(target, draft) over the teacher's ids at the query's temperature (Leviathan et al. 2023, arXiv
    2211.17192). Tokens beyond the top K and filters such as top-p are left out, so this is a lower bound; it is tight
    for K = 32.

    Args:
        logits_NR: the drafter's logits.
        teacher: the target's top-K and the emitted tokens.
        vocab_ids_R: token ids of the drafter's vocabulary.
        slots_NK: index of each teacher id in that vocabulary; R where it is not in it.
        temperature_N: temperature of each position's query.
    """
    greedy_N = vocab_ids_R[logits_NR.argmax(1)] == teacher.emitted_N
    if not bool((temperature_N > 0).any()):
        return greedy_N.float()
    divisor_N1 = temperature_N.clamp(min=_LOWEST_TEMPERATURE)[:, None]
    draft_NR = (logits_NR.float() / divisor_N1).softmax(1)
    draft_NK = draft_NR.gather(1, slots_NK.clamp(max=logits_NR.shape[1] - 1))
    draft_NK = draft_NK.masked_fill(slots_NK >= logits_NR.shape[1], 0.0)
    overlap_N = torch.minimum(_at_temperature(teacher.log_probs_NK, divisor_N1), draft_NK).sum(1)
    return torch.where(temperature_N > 0, overlap_N, greedy_N.float())


def emitted_log_probs(logits_BQR: Tensor, slots_BQ: Tensor) -> Tensor:
    """The drafter's log-probability `[B, Q]` of the emitted tokens; -inf for those it cannot say.

    Args:
        logits_BQR: the drafter's.
        slots_BQ: places of the emitted tokens in its vocabulary, R where there is none.
    """
    size = logits_BQR.shape[2]
    log_probs_BQR = logits_BQR.float().log_softmax(2)
    emitted_BQ = log_probs_BQR.gather(2, slots_BQ[:, :, None].clamp(max=size - 1))[:, :, 0]
    return emitted_BQ.masked_fill(slots_BQ >= size, -torch.inf)


def chain_sums(acceptance_DBQ: Sequence[Tensor], predicting_BQ: Tensor) -> ChainSums:
    """Sum over all chains. Depth d at column q continues the chain whose depth d - 1 was at column q - 1.

    Args:
        acceptance_DBQ: acceptance `[B, Q]` by depth; columns that do not predict are ignored.
        predicting_BQ: bool, columns that predict an output.
    """
    accepted, reached = [], []
    reached_BQ = predicting_BQ.double()
    for acceptance_BQ in acceptance_DBQ:
        accepted_BQ = reached_BQ * acceptance_BQ
        accepted.append(accepted_BQ.sum(dim=1))
        reached.append(reached_BQ.sum(dim=1))
        reached_BQ = accepted_BQ.roll(1, dims=1) * predicting_BQ
        reached_BQ[:, 0] = 0.0
    return ChainSums(torch.stack(accepted, dim=1).cpu(), torch.stack(reached, dim=1).cpu())


def _at_temperature(log_probs_NK: Tensor, divisor_N1: Tensor) -> Tensor:
    """The target's top-K probabilities at a temperature. The tail counts as tokens as likely as the K-th."""
    log_probs_NK = log_probs_NK.float()
    left_N1 = (1.0 - log_probs_NK.exp().sum(1, keepdim=True)).clamp(min=0.0)
    scaled_NK = log_probs_NK / divisor_N1
    tail_N1 = left_N1.log() + log_probs_NK[:, -1:] * (1.0 / divisor_N1 - 1.0)
    return torch.exp(scaled_NK - torch.cat((scaled_NK, tail_N1), dim=1).logsumexp(1, keepdim=True))
