"""Verification: the target's verdict on every row's proposal, from one pass over all of them.

Shapes: B rows, S of them sampled, K proposed tokens, Q = K + 1 positions (padded), V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Protocol

import torch
from torch import Tensor

from osd.machine.arrays import Numbers, tensor
from osd.machine.transfer import in_columns, upload
from osd.ports.constraint import RowConstraint
from osd.records.proposal import Proposal
from osd.records.rules import AcceptRule
from osd.verify.adjust import AdjustedRow, adjust
from osd.verify.constrain import constrained
from osd.verify.logits import Logits, SampledRows
from osd.verify.shaping import RowShaping, uniforms
from osd.verify.token_rule import match_greedy


class Row(AdjustedRow, Protocol):
    """What verification needs of a query (implemented by `osd.engine.sequence.Sequence`)."""

    @property
    def shaping(self) -> RowShaping:
        """The shaping parameters of its distributions."""
        ...

    @property
    def generator(self) -> Random:
        """Its own random generator."""
        ...

    @property
    def constraint(self) -> RowConstraint | None:
        """Which tokens it may go on with; None: all."""
        ...


def verify_rows(
    logits: Logits, rows: Sequence[Row], proposal: Proposal | None, *, rule: AcceptRule = "token"
) -> list[list[int]]:
    """Verify each row's proposal against the target's logits at its K + 1 positions.

    Args:
        logits: position i of row b follows the row's known tokens and the first i proposed ones.
        rows: the decoding rows.
        proposal: None if no row proposes.
        rule: the accept rule for sampled rows.

    Returns:
        The tokens that each row commits: the accepted ones, then the recovered or bonus token. Empty if the logits that
        determine them are NaN or infinite.
    """
    lengths = [0] * len(rows) if proposal is None else proposal.lengths
    num_proposed = max(lengths)
    params = [row.request.params for row in rows]
    is_greedy_B = [one.is_greedy for one in params]
    columns = [] if proposal is None else [proposal.of_length(num_proposed)]
    constraints = [row.constraint for row in rows]
    if any(constraints):
        logits = logits.replaced(constrained(logits.tensor_BQV, constraints, proposal))
    adjusted = logits
    if any(one.adjusts_logits for one in params):
        adjusted = logits.replaced(_adjusted(logits.tensor_BQV, rows, proposal))
    if any(is_greedy_B):
        columns.append(adjusted.best_BQ)
    if not all(is_greedy_B):
        columns.append(_verdicts(logits, adjusted, rows, proposal, lengths, rule))
    columns.append(adjusted.is_finite_BQ)
    committed = []
    for is_greedy, length, known in zip(is_greedy_B, lengths, in_columns(columns), strict=True):
        ids, is_finite_Q = known[: -logits.num_positions], known[-logits.num_positions :]
        if is_greedy:
            tokens = match_greedy(ids[num_proposed:], ids[:length])
        else:
            *_, num_accepted, next_token = ids
            tokens = [*ids[:num_accepted], next_token]
        # Block verification depends on all of a row's positions.
        num_decisive = len(tokens) if is_greedy or rule == "token" else length + 1
        committed.append(tokens if all(is_finite_Q[:num_decisive]) else [])
    return committed


def _verdicts(
    logits: Logits,
    adjusted: Logits,
    rows: Sequence[Row],
    proposal: Proposal | None,
    lengths: Sequence[int],
    rule: AcceptRule,
) -> Numbers:
    """How many proposed tokens each row accepts, and the token that follows them, `[B, 2]`; zeros for greedy rows.

    Rows are judged in groups of one kind each, from their own logits, so that a row's rounding and draws do not depend
    on whether another row of the batch has adjustments, or tokens that were drawn.
    """
    found, groups = [], defaultdict[tuple[bool, bool], list[int]](list)
    for b, row in enumerate(rows):
        if not row.request.params.is_greedy:
            groups[row.request.params.adjusts_logits, proposal is not None and proposal.is_drawn(b)].append(b)
    for (adjusts_logits, is_drawn), sampled in groups.items():
        own, offered = adjusted if adjusts_logits else logits, proposal
        if proposal is not None and not is_drawn:
            offered = replace(proposal, draft_probs_BKV=None)
        found.append((sampled, own.judge(_sampled(rows, sampled, lengths, offered, rule))))
    if len(found) == 1 and len(found[0][0]) == len(rows):
        return found[0][1]
    verdicts_B2 = tensor(found[0][1]).new_zeros(len(rows), 2)
    for sampled, verdicts_S2 in found:
        verdicts_B2.index_copy_(0, upload(sampled, verdicts_B2.device), tensor(verdicts_S2))
    return verdicts_B2


def _sampled(
    rows: Sequence[Row], sampled: list[int], lengths: Sequence[int], proposal: Proposal | None, rule: AcceptRule
) -> SampledRows:
    """The sampled rows among these, each with as many draws from its own generator as its proposal needs."""
    width = (max(proposal.lengths) if proposal else 0) + 1
    return SampledRows(
        rows=sampled,
        shapes=[rows[row].shaping for row in sampled],
        lengths=[lengths[row] for row in sampled],
        uniform_SQ=[uniforms(rows[row].generator, lengths[row] + 1, width) for row in sampled],
        proposal=proposal,
        rule=rule,
    )


def _adjusted(logits_BQV: Tensor, rows: Sequence[Row], proposal: Proposal | None) -> Tensor:
    """The logits in float32, with the adjustments that rows ask for."""
    proposed_BK = proposed_ids(proposal, logits_BQV)
    logits_BQV = logits_BQV.float()
    adjusted = [
        adjust(logits_QV, row, proposed_K) if row.request.params.adjusts_logits else logits_QV
        for logits_QV, row, proposed_K in zip(logits_BQV, rows, proposed_BK, strict=True)
    ]
    return torch.stack(adjusted)


def proposed_ids(proposal: Proposal | None, logits_BQV: Tensor) -> Tensor:
    """The proposed tokens of every row, on the logits' device, `[B, K]`; K is 0 without a proposal."""
    if proposal is None:
        return logits_BQV.new_empty(len(logits_BQV), 0, dtype=torch.long)
    return tensor(proposal.of_length(max(proposal.lengths)))
