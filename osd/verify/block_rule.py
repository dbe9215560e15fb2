"""Block verification: accepts the longest block of a proposal that passes a joint test of its tokens.

Sun et al. 2024 (arXiv 2403.10444, algorithm 2). As with token-wise rejection (`osd.verify.token_rule`), the output
follows the target's distribution exactly. The expected number of accepted tokens is never lower: a token that is
likelier under the target than under the drafter can compensate for an earlier one that is less likely.

Shapes: B rows, K proposed tokens (row b has the first `lengths[b]` of them), Q = K + 1 positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from osd.verify.shaping import draw
from osd.verify.token_rule import count_prefix, residual


def reject_blockwise(
    target_probs_BQV: Tensor,
    draft_probs_BKV: Tensor | None,
    proposed_BK: Tensor,
    lengths_B: Tensor,
    uniform_BQ: Tensor,
) -> tuple[Tensor, Tensor]:
    """Accept the longest block of each row's proposal that passes its test, and draw the token that follows it.

    With p_0 = 1, the first i tokens have weight p_i = min(1, p_(i-1) * target(x_i) / draft(x_i)). The residual at the
    position after them is max(p_i * target - draft, 0), whose sum is e_i. A block of i < length tokens passes with
    probability e_i / (e_i + 1 - p_i), the whole proposal with p_length. After the longest block that passed, the
    *recovered* token is drawn from the residual; after the whole proposal, the *bonus* token is drawn from the target.

    Args:
        target_probs_BQV: the target's distribution at each position, after shaping.
        draft_probs_BKV: the distributions that the proposed tokens were drawn from. A row's proposal ends before the
            first one that is not a distribution (NaN). None if each token was its drafter's only candidate
            (probability 1).
        proposed_BK: ids of the proposed tokens.
        lengths_B: number of tokens that each row proposes.
        uniform_BQ: uniform draws in (0, 1): `lengths[b]` tests, then the draw of the last token.

    Returns:
        (number of accepted tokens `[B]`, the recovered or bonus token `[B]`).
    """
    rows_B, num_proposed = torch.arange(len(lengths_B), device=lengths_B.device), proposed_BK.shape[1]
    last_uniform_B = uniform_BQ[rows_B, lengths_B]
    index_BK1 = proposed_BK[:, :, None]
    target_BK = target_probs_BQV[:, :num_proposed].gather(2, index_BK1)[:, :, 0]
    draft_BK = torch.ones_like(target_BK) if draft_probs_BKV is None else draft_probs_BKV.gather(2, index_BK1)[:, :, 0]
    lengths_B = count_prefix(draft_BK.isfinite(), lengths_B)
    weight_B = torch.ones_like(last_uniform_B)
    kept_weight_B, num_accepted_B = weight_B, torch.zeros_like(lengths_B)
    for position in range(1, num_proposed + 1):
        joint_B = weight_B * target_BK[:, position - 1]
        draft_B = draft_BK[:, position - 1]
        weight_B = torch.where(joint_B >= draft_B, 1.0, joint_B / draft_B)
        passes_B = uniform_BQ[:, position - 1] < weight_B
        if position < num_proposed:
            rest_BV = weight_B[:, None] * target_probs_BQV[:, position]
            excess_B = residual(rest_BV, draft_probs_BKV, proposed_BK, torch.full_like(rows_B, position)).sum(dim=-1)
            is_sound_B = uniform_BQ[:, position - 1] * (excess_B + 1 - weight_B) < excess_B
            passes_B = torch.where(position < lengths_B, is_sound_B | (weight_B >= 1), passes_B)
        passes_B = passes_B & (position <= lengths_B)
        num_accepted_B = torch.where(passes_B, position, num_accepted_B)
        kept_weight_B = torch.where(passes_B, weight_B, kept_weight_B)
    weights_BV = target_probs_BQV[rows_B, num_accepted_B]
    if num_proposed:
        rest_BV, position_B = kept_weight_B[:, None] * weights_BV, num_accepted_B.clamp(max=num_proposed - 1)
        residual_BV = residual(rest_BV, draft_probs_BKV, proposed_BK, position_B)
        # The residual is empty only if target and draft agree up to rounding; then draw from the target.
        is_drawn_B = (num_accepted_B < lengths_B) & (residual_BV.sum(dim=-1) > 0)
        weights_BV = torch.where(is_drawn_B[:, None], residual_BV, weights_BV)
    return num_accepted_B, draw(weights_BV, last_uniform_B)
