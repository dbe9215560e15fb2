"""Token-wise rejection sampling: which proposed tokens to keep so that the output is exactly the target's.

Leviathan et al. 2023 (arXiv 2211.17192, section 2.3, appendix A.1); Chen et al. 2023 (arXiv 2302.01318, algorithm 2).
Shapes: K proposed tokens, V vocabulary; `target_probs` has one row more, for the bonus token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from osd.sampling import draw


def reject_tokenwise(
    target_probs_QV: Tensor, draft_probs_KV: Tensor, proposed_K: Tensor, uniform_Q: Tensor
) -> tuple[int, int]:
    """Keep the longest sound prefix of a proposal, and draw the token that follows it.

    Proposed token x at position i is accepted with probability min(1, target(x) / draft(x)). At the first rejection
    the *recovered* token is drawn from the residual max(target - draft, 0); when all are accepted, the *bonus* token
    is drawn from the target itself.

    Args:
        target_probs_QV: `[K + 1, V]`, what the query may be drawn from at each position.
        draft_probs_KV: `[K, V]`, the very distributions the proposed tokens were drawn from.
        proposed_K: the proposed token ids.
        uniform_Q: `[K + 1]` uniform draws in [0, 1): K acceptance tests, then the draw of the last token.

    Returns:
        (number of accepted tokens, the recovered or bonus token).
    """
    num_proposed = proposed_K.shape[0]
    index_K1 = proposed_K[:, None]
    target_K = target_probs_QV[:num_proposed].gather(1, index_K1)[:, 0]
    draft_K = draft_probs_KV.gather(1, index_K1)[:, 0]
    accepted_K = uniform_Q[:num_proposed] * draft_K < target_K
    num_accepted = int(accepted_K.long().cumprod(0).sum())
    weights_V = target_probs_QV[num_accepted]
    if num_accepted < num_proposed:
        residual_V = residual(weights_V, draft_probs_KV[num_accepted])
        # The residual is empty only where target and draft agree to rounding; then nothing is rejected but by rounding.
        weights_V = torch.where(residual_V.sum() > 0, residual_V, weights_V)
    return num_accepted, int(draw(weights_V[None], uniform_Q[num_proposed:])[0])


def residual(target_probs_V: Tensor, draft_probs_V: Tensor) -> Tensor:
    """What the target gives beyond the draft, unnormalised `[V]`."""
    return (target_probs_V - draft_probs_V).clamp(min=0.0)


def match_greedy(target_ids_Q: list[int], proposed_K: list[int]) -> tuple[int, int]:
    """Greedy decoding: keep the proposed tokens that are the target's own choice, then take its choice.

    Args:
        target_ids_Q: `[K + 1]` the target's most likely token at each position.
        proposed_K: the proposed token ids.

    Returns:
        (number of accepted tokens, the recovered or bonus token).
    """
    num_accepted = 0
    while num_accepted < len(proposed_K) and proposed_K[num_accepted] == target_ids_Q[num_accepted]:
        num_accepted += 1
    return num_accepted, target_ids_Q[num_accepted]
