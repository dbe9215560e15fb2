"""Applies constraints: restricts rows to their allowed tokens, before the logits are used for anything else.

Shapes: B rows, K proposed tokens, Q = K + 1 positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from osd.machine.arrays import Numbers, tensor
from osd.machine.transfer import upload
from osd.ports.constraint import RowConstraint
from osd.records.proposal import Proposal
from osd.verify.shaping import draw


def drawn_again(
    proposal: Proposal,
    constraints: Sequence[RowConstraint | None],
    is_greedy_B: Sequence[bool],
    generators: Sequence[Random],
) -> Proposal:
    """The proposal with every row's first forbidden token drawn again among the allowed ones, and none after it.

    Given that it is allowed, a drawn token follows the draft distribution restricted to the allowed tokens, and one
    that is drawn again follows it as well. This restricted distribution therefore replaces the draft distribution at
    all positions that are kept. A greedy row takes its most likely allowed token instead, since its verdict does not
    depend on how a token was found. Rows whose tokens were not drawn, and positions where the draft distribution gives
    no allowed token any probability, are left unchanged.

    Args:
        proposal: of all rows.
        constraints: by row; None: no constraint.
        is_greedy_B: whether the row decodes greedily.
        generators: each row's random generator.
    """
    if proposal.draft_probs_BKV is None:
        return proposal
    ids_BK, probs_BKV = tensor(proposal.token_ids_BK).clone(), tensor(proposal.draft_probs_BKV).clone()
    lengths, vocab_tokens = list(proposal.lengths), probs_BKV.shape[2]
    for row, (constraint, length) in enumerate(zip(constraints, lengths, strict=True)):
        if constraint is None or not length or not proposal.is_drawn(row):
            continue
        proposed = ids_BK[row, :length].tolist()
        count = num_allowed(constraint, proposed)
        end = min(count + 1, length)
        allowed_NV = upload(_unpacked(constraint.allowed(proposed)[:end], vocab_tokens), probs_BKV.device)
        masked_NV = probs_BKV[row, :end] * allowed_NV
        totals_N1 = masked_NV.sum(dim=1, keepdim=True)
        if count < length and float(totals_N1[count]) > 0.0:
            own_1V = masked_NV[count:end]
            uniform_1 = torch.tensor([generators[row].random()], device=probs_BKV.device)
            token_1 = own_1V.argmax(dim=1) if is_greedy_B[row] else draw(own_1V, uniform_1)
            ids_BK[row, count], lengths[row] = token_1[0], count + 1
        elif count < length:
            end = count
        probs_BKV[row, :end] = masked_NV[:end] / totals_N1[:end]
    is_array = isinstance(proposal.token_ids_BK, np.ndarray)
    numbers: list[Numbers] = [ids_BK.numpy(), probs_BKV.numpy()] if is_array else [ids_BK, probs_BKV]
    again = replace(proposal, token_ids_BK=numbers[0], draft_probs_BKV=numbers[1])
    return again.cut(lengths) or again


def cut_to_constraints(
    proposal: Proposal, constraints: Sequence[RowConstraint | None], is_greedy_B: Sequence[bool]
) -> Proposal | None:
    """The proposal without the tokens that constraints are certain to reject; None if nothing is left.

    Tokens after the first forbidden one are never accepted. The forbidden one is left out too if it was its drafter's
    only candidate or the row decodes greedily: the next token then comes from the target's distribution either way. If
    it was drawn, it is kept, since the token after its rejection has to be drawn from the residual.

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
        allowed_QV = _unpacked(bits_QW, vocab_tokens)
        logits_BQV[row, : len(bits_QW)].masked_fill_(~upload(allowed_QV, logits_BQV.device), -torch.inf)
    return logits_BQV


def _unpacked(bits_QW: NDArray[np.uint32], vocab_tokens: int) -> NDArray[np.bool_]:
    """Bit masks as booleans, `[Q, V]`."""
    return np.unpackbits(bits_QW.view(np.uint8), axis=1, count=vocab_tokens, bitorder="little").astype(bool)
