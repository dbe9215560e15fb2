"""Applies constraints: restricts rows to their allowed tokens, before the logits are used for anything else.

Shapes: B rows, K proposed tokens, Q = K + 1 positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from osd.machine.arrays import tensor
from osd.machine.transfer import upload
from osd.ports.constraint import RowConstraint
from osd.records.proposal import Proposal


def cut_to_constraints(
    proposal: Proposal, constraints: Sequence[RowConstraint | None], is_greedy_B: Sequence[bool]
) -> Proposal | None:
    """The proposal without the tokens that constraints are certain to reject; None if nothing is left.

    Tokens after the first forbidden one are never accepted. That one itself is left out where it was its drafter's only
    candidate or the row decodes greedily: the next token then comes from the target's distribution either way. Where it
    was drawn, it is kept, since a token that follows its rejection has to be drawn from the residual.

    Args:
        proposal: of all rows.
        constraints: by row; None: no constraint.
        is_greedy_B: whether the row decodes greedily.
    """
    lengths = list(proposal.lengths)
    for row, (constraint, length) in enumerate(zip(constraints, lengths, strict=True)):
        if constraint is not None and length:
            proposed = tensor(proposal.token_ids_BK)[row, :length].tolist()
            keeps_forbidden = proposal.is_drawn(row) and not is_greedy_B[row]
            lengths[row] = min(num_allowed(constraint, proposed) + keeps_forbidden, length)
    return proposal if lengths == list(proposal.lengths) else proposal.cut(lengths)


def num_allowed(constraint: RowConstraint, proposed: Sequence[int]) -> int:
    """Number of proposed tokens before the first that is not allowed."""
    bits_QW = constraint.allowed(proposed)
    for position, token in enumerate(proposed):
        if not bits_QW[position, token >> 5] >> np.uint32(token & 31) & np.uint32(1):
            return position
    return len(proposed)


def constrained(logits_BQV: Tensor, constraints: Sequence[RowConstraint | None], proposal: Proposal | None) -> Tensor:
    """A copy of the logits with -inf, that is, probability 0, for every token that a row's constraint forbids.

    Args:
        logits_BQV: position i of row b follows the row's known tokens and the first i proposed ones.
        constraints: by row; None: no constraint.
        proposal: None if no row proposes.
    """
    logits_BQV = logits_BQV.clone()
    num_positions, vocab_tokens = logits_BQV.shape[1:]
    for row, constraint in enumerate(constraints):
        if constraint is None:
            continue
        length = 0 if proposal is None else proposal.lengths[row]
        proposed = [] if proposal is None else tensor(proposal.token_ids_BK)[row, :length].tolist()
        # Positions beyond the row's own proposal are not used.
        bits_QW = constraint.allowed(proposed)[:num_positions]
        allowed_QV = np.unpackbits(bits_QW.view(np.uint8), axis=1, count=vocab_tokens, bitorder="little").astype(bool)
        logits_BQV[row, : len(bits_QW)].masked_fill_(~upload(allowed_QV, logits_BQV.device), -torch.inf)
    return logits_BQV
