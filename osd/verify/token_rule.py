"""Token-wise rejection sampling: which proposed tokens to accept so that the output follows the target's distribution.

Leviathan et al. 2023 (arXiv 2211.17192, section 2.3, appendix A.1); Chen et al. 2023 (arXiv 2302.01318, algorithm 2).
All sampled rows of a round are processed together, by tensor operations that do not synchronise with the device.
Shapes: B rows, K proposed tokens (row b has the first `lengths[b]` of them), Q = K + 1 positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from osd.verify.shaping import draw


def reject_tokenwise(
    target_probs_BQV: Tensor,
    draft_probs_BKV: Tensor | None,
    proposed_BK: Tensor,
    lengths_B: Tensor,
    uniform_BQ: Tensor,
) -> tuple[Tensor, Tensor]:
    """Accept the longest prefix of each row's proposal that passes, and draw the token that follows it.

    Proposed token x at position i is accepted with probability min(1, target(x) / draft(x)). At the first rejection
    the *recovered* token is drawn from the residual max(target - draft, 0); when all are accepted, the *bonus* token
    is drawn from the target itself.

    Args:
        target_probs_BQV: the target's distribution at each position, after shaping.
        draft_probs_BKV: the distributions that the proposed tokens were drawn from; None if each was its drafter's only
            candidate (probability 1).
        proposed_BK: ids of the proposed tokens.
        lengths_B: number of tokens that each row proposes.
        uniform_BQ: uniform draws in [0, 1): `lengths[b]` acceptance tests, then the draw of the last token.

    Returns:
        (number of accepted tokens `[B]`, the recovered or bonus token `[B]`).
    """
    rows_B, num_proposed = torch.arange(len(lengths_B), device=lengths_B.device), proposed_BK.shape[1]
    index_BK1 = proposed_BK[:, :, None]
    target_BK = target_probs_BQV[:, :num_proposed].gather(2, index_BK1)[:, :, 0]
    draft_BK = torch.ones_like(target_BK) if draft_probs_BKV is None else draft_probs_BKV.gather(2, index_BK1)[:, :, 0]
    accepted_BK = uniform_BQ[:, :num_proposed] * draft_BK < target_BK
    num_accepted_B = count_prefix(accepted_BK, lengths_B)
    weights_BV = target_probs_BQV[rows_B, num_accepted_B]
    if num_proposed:
        residual_BV = residual(weights_BV, draft_probs_BKV, proposed_BK, num_accepted_B.clamp(max=num_proposed - 1))
        # The residual is empty only if target and draft agree up to rounding; then draw from the target.
        is_drawn_B = (num_accepted_B < lengths_B) & (residual_BV.sum(dim=-1) > 0)
        weights_BV = torch.where(is_drawn_B[:, None], residual_BV, weights_BV)
    return num_accepted_B, draw(weights_BV, uniform_BQ[rows_B, lengths_B])


def residual(
    target_probs_BV: Tensor, draft_probs_BKV: Tensor | None, proposed_BK: Tensor, position_B: Tensor
) -> Tensor:
    """The unnormalised residual, max(target - draft, 0), at one position of each row, `[B, V]`.

    Args:
        target_probs_BV: the target's probabilities there, possibly scaled down.
        draft_probs_BKV: see `reject_tokenwise`.
        proposed_BK: ids of the proposed tokens.
        position_B: the position in the proposal.
    """
    rows_B = torch.arange(len(target_probs_BV), device=target_probs_BV.device)
    if draft_probs_BKV is None:  # the draft gives probability 1 to the proposed token
        return target_probs_BV.scatter(1, proposed_BK[rows_B, position_B][:, None], 0.0)
    return (target_probs_BV - draft_probs_BKV[rows_B, position_B]).clamp(min=0.0)


def match_greedy(target_ids_Q: Sequence[int], proposed_K: Sequence[int]) -> list[int]:
    """Greedy decoding: accept the proposed tokens that equal the target's choice, then take its choice.

    Args:
        target_ids_Q: the target's most likely token at each position.
        proposed_K: ids of the proposed tokens.

    Returns:
        The accepted tokens, then the recovered or bonus token: all are the target's choices.
    """
    num_accepted = 0
    while num_accepted < len(proposed_K) and proposed_K[num_accepted] == target_ids_Q[num_accepted]:
        num_accepted += 1
    return list(target_ids_Q[: num_accepted + 1])


def count_prefix(accepted_BK: Tensor, lengths_B: Tensor) -> Tensor:
    """How many of each row's first `lengths[b]` flags are set before the first unset one, `[B]`."""
    offered_BK = torch.arange(accepted_BK.shape[1], device=lengths_B.device) < lengths_B[:, None]
    return (accepted_BK & offered_BK).long().cumprod(dim=1).sum(dim=1)
