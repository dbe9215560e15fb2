"""Verification: the target's verdict on every row's proposal, from one pass over all of them.

Shapes: B rows, S of them sampled, K proposed tokens, Q = K + 1 positions (padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from osd.engine.sequence import Sequence
from osd.kernels.cpu.verdicts.sampled_rows import verdicts
from osd.machine.arrays import Numbers, array, is_on_host, tensor
from osd.machine.transfer import upload
from osd.models.pass_output import Logits
from osd.records.proposal import Proposal
from osd.records.rules import AcceptRule
from osd.verify.block_rule import reject_blockwise
from osd.verify.shaping import Shaping, penalise, shape_probs, uniforms
from osd.verify.token_rule import match_greedy, reject_tokenwise


def verify_rows(
    logits: Logits, rows: Rows[Sequence], proposal: Proposal | None, *, rule: AcceptRule = "token"
) -> list[list[int]]:
    """Judge each row's proposal against the target's logits at its K + 1 positions.

    Args:
        logits: row b's position i follows its known tokens and the first i proposed ones.
        rows: the decoding rows.
        proposal: None when no row proposes.
        rule: for sampled rows: "token", token-wise rejection, or "block", block verification.

    Returns:
        What each row commits: the accepted tokens, then the recovered or bonus one. Nothing where logits that decided
        this are NaN or infinite.
    """
    lengths = [0] * len(rows) if proposal is None else proposal.lengths
    num_proposed = max(lengths)
    params = [sequence.request.params for sequence in rows]
    is_greedy_B = [one.is_greedy for one in params]
    columns = [] if proposal is None else [proposal.of_length(num_proposed)]
    penalised = logits
    if any(one.has_penalties for one in params):
        penalised = Logits(_penalised(logits.tensor_BQV, rows, _proposed(proposal, num_proposed, logits)))
    if any(is_greedy_B):
        columns.append(penalised.best_BQ)
    if not all(is_greedy_B):
        columns.append(_verdicts(logits, penalised, rows, proposal, lengths, rule))
    columns.append(penalised.is_finite_BQ)
    committed = []
    for is_greedy, length, known in zip(is_greedy_B, lengths, _known(columns), strict=True):
        ids, is_finite_Q = known[: -logits.num_positions], known[-logits.num_positions :]
        if is_greedy:
            tokens = match_greedy(ids[num_proposed:], ids[:length])
        else:
            *_, num_accepted, next_token = ids
            tokens = [*ids[:num_accepted], next_token]
        # A block's verdict hangs on all of its positions.
        num_decisive = len(tokens) if is_greedy or rule == "token" else length + 1
        committed.append(tokens if all(is_finite_Q[:num_decisive]) else [])
    return committed


def _known(columns: list[Numbers]) -> list[list[int]]:
    """All that the host needs to know, by row: from a GPU in one copy, which is the round's one wait."""
    if is_on_host(columns[0]):
        whole: Numbers = np.concatenate([array(one) for one in columns], axis=1)
    else:
        whole = torch.cat([tensor(one) for one in columns], dim=1)
    known: list[list[int]] = whole.tolist()
    return known


def _verdicts(
    logits: Logits,
    penalised: Logits,
    rows: Rows[Sequence],
    proposal: Proposal | None,
    lengths: Rows[int],
    rule: AcceptRule,
) -> Numbers:
    """How many proposed tokens each row keeps, and the token that follows them, `[B, 2]`; zeros for greedy rows."""
    found = []
    params = [sequence.request.params for sequence in rows]
    has_penalties_B = [None if one.is_greedy else one.has_penalties for one in params]
    # Apart, so that nobody's draws depend on the company: what is penalised is float32, and judged by other code.
    for has_penalties, own in ((False, logits), (True, penalised)):
        sampled = [b for b, one in enumerate(has_penalties_B) if one is has_penalties]
        if sampled:
            found.append((sampled, _judged(own, rows, sampled, [lengths[row] for row in sampled], proposal, rule)))
    if len(found) == 1 and len(found[0][0]) == len(rows):
        return found[0][1]
    verdicts_B2 = tensor(found[0][1]).new_zeros(len(rows), 2)
    for sampled, verdicts_S2 in found:
        verdicts_B2.index_copy_(0, upload(sampled, verdicts_B2.device), tensor(verdicts_S2))
    return verdicts_B2


def _judged(
    logits: Logits,
    rows: Rows[Sequence],
    sampled: list[int],
    lengths: list[int],
    proposal: Proposal | None,
    rule: AcceptRule,
) -> Numbers:
    """Of these rows alone, `[S, 2]`."""
    shapes, num_proposed = [rows[row].shape for row in sampled], max(proposal.lengths) if proposal else 0
    # No draw more than it needs, or its neighbours would change the next.
    draws = [uniforms(rows[row].generator, n + 1, num_proposed + 1) for row, n in zip(sampled, lengths, strict=True)]
    if logits.bits_RV is not None:
        return verdicts(logits, sampled, lengths, proposal, shapes, draws, rule=rule)
    logits_BQV = logits.tensor_BQV
    device = logits_BQV.device
    index_S, lengths_S = upload([sampled, lengths], device)
    target_probs_SQV = shape_probs(logits_BQV[index_S], Shaping.of(shapes, logits.vocab_tokens, device))
    # Where no sampled row proposes, there is nothing to test: these are only shaped like it.
    draft_probs_SKV = target_probs_SQV[:, :num_proposed]
    if proposal is not None and proposal.draft_probs_BKV is not None:
        draft_probs_SKV = tensor(proposal.draft_probs_BKV)[index_S, :num_proposed]
    proposed_SK = _proposed(proposal, num_proposed, logits)[index_S]
    reject = reject_blockwise if rule == "block" else reject_tokenwise
    verdict = reject(target_probs_SQV, draft_probs_SKV, proposed_SK, lengths_S, upload(draws, device))
    return torch.stack(verdict, dim=1)


def _penalised(logits_BQV: Tensor, rows: Rows[Sequence], proposed_BK: Tensor) -> Tensor:
    """The logits, with the penalties of the rows that have any."""
    logits_BQV = logits_BQV.float()
    penalised = [
        penalise(logits_QV, sequence.request.params, sequence.output_ids, proposed_K)
        if sequence.request.params.has_penalties
        else logits_QV
        for logits_QV, sequence, proposed_K in zip(logits_BQV, rows, proposed_BK, strict=True)
    ]
    return torch.stack(penalised)


def _proposed(proposal: Proposal | None, num_proposed: int, logits: Logits) -> Tensor:
    """Every row's proposal, `[B, K]`; where there is none, K is 0."""
    if proposal is None:
        return logits.tensor_BQV.new_empty(len(logits.tensor_BQV), 0, dtype=torch.long)
    return tensor(proposal.of_length(num_proposed))
