"""Verification: the target's verdict on every row's proposal, from one pass over all of them.

Shapes: B rows, S of them sampled, K proposed tokens, Q = K + 1 positions (padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from itertools import chain

import torch
from torch import Tensor

from osd.models.compiled.verdicts import can_judge, verdicts
from osd.models.transfer import upload
from osd.proposal import Proposal
from osd.rejection import match_greedy, reject_tokenwise
from osd.sampling import Shaping, most_likely, penalise, shape_probs
from osd.sequence import Sequence


def verify_rows(
    logits_BQV: Tensor, rows: Rows[Sequence], proposal: Proposal | None, best_BQ: Tensor | None = None
) -> list[list[int]]:
    """Judge each row's proposal against the target's logits at its K + 1 positions.

    Args:
        logits_BQV: row b's position i follows its known tokens and the first i proposed ones.
        rows: the decoding rows.
        proposal: None when no row proposes.
        best_BQ: the index of each greatest logit, where it is known.

    Returns:
        What each row commits: the accepted tokens, then the recovered or bonus one.
    """
    lengths = list(proposal.lengths) if proposal is not None else [0] * len(rows)
    num_proposed = max(lengths)
    params = [sequence.request.params for sequence in rows]
    is_greedy_B = [one.is_greedy for one in params]
    columns = [] if proposal is None else [_proposed(proposal, num_proposed, logits_BQV)]
    penalised_BQV = logits_BQV
    if any(one.has_penalties for one in params):
        penalised_BQV, best_BQ = _penalised(logits_BQV, rows, _proposed(proposal, num_proposed, logits_BQV)), None
    if any(is_greedy_B):
        columns.append(most_likely(penalised_BQV) if best_BQ is None else best_BQ)
    if not all(is_greedy_B):
        proposed_BK = _proposed(proposal, num_proposed, logits_BQV)
        verdicts_B2 = proposed_BK.new_zeros(len(rows), 2)
        # Apart, so that nobody's draws depend on the company: what is penalised is float32, and judged by other code.
        for has_penalties, own_BQV in ((False, logits_BQV), (True, penalised_BQV)):
            sampled = [b for b, one in enumerate(params) if not one.is_greedy and one.has_penalties == has_penalties]
            if sampled:
                verdicts_S2 = _verdicts(own_BQV, rows, sampled, proposed_BK, lengths, proposal)
                verdicts_B2.index_copy_(0, upload(sampled, verdicts_B2.device), verdicts_S2)
        columns.append(verdicts_B2)
    committed = []
    for is_greedy, length, ids in zip(is_greedy_B, lengths, _known(columns), strict=True):
        if is_greedy:
            committed.append(match_greedy(ids[num_proposed:], ids[:length]))
        else:
            *_, num_accepted, next_token = ids
            committed.append([*ids[:num_accepted], next_token])
    return committed


def _known(columns: list[Tensor]) -> list[list[int]]:
    """All that the host needs to know, by row: from a GPU in one copy, which is the round's one wait."""
    if columns[0].device.type == "cpu":
        return [list(chain.from_iterable(parts)) for parts in zip(*(one.tolist() for one in columns), strict=True)]
    known: list[list[int]] = (columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)).tolist()
    return known


def _verdicts(
    logits_BQV: Tensor,
    rows: Rows[Sequence],
    sampled: list[int],
    proposed_BK: Tensor,
    lengths: list[int],
    proposal: Proposal | None,
) -> Tensor:
    """How many proposed tokens each of these rows keeps, and the token that follows them: `[S, 2]`."""
    device, num_proposed = logits_BQV.device, proposed_BK.shape[1]
    draft_probs_BKV = None if proposal is None else proposal.draft_probs_BKV
    lengths = [lengths[row] for row in sampled]
    shaping = Shaping.of([rows[row].request.params for row in sampled], logits_BQV.shape[-1], device)
    uniform_SQ = torch.zeros(len(sampled), num_proposed + 1)
    for place, (row, length) in enumerate(zip(sampled, lengths, strict=True)):
        # No draw more than it needs, or its neighbours would change the next.
        uniform_SQ[place, : length + 1] = torch.rand(length + 1, generator=rows[row].generator)
    if can_judge(logits_BQV):
        return verdicts(logits_BQV, sampled, lengths, proposed_BK, draft_probs_BKV, shaping, uniform_SQ)
    index_S, lengths_S = upload([sampled, lengths], device)
    target_probs_SQV = shape_probs(logits_BQV[index_S], shaping)
    # Where no sampled row proposes, there is nothing to test: these are only shaped like it.
    draft_probs_SKV = target_probs_SQV[:, :num_proposed]
    if draft_probs_BKV is not None:
        draft_probs_SKV = draft_probs_BKV[index_S, :num_proposed]
    verdict = reject_tokenwise(
        target_probs_SQV, draft_probs_SKV, proposed_BK[index_S], lengths_S, upload(uniform_SQ, device)
    )
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


def _proposed(proposal: Proposal | None, num_proposed: int, logits_BQV: Tensor) -> Tensor:
    """Every row's proposal, `[B, K]`; where there is none, K is 0."""
    if proposal is None:
        return logits_BQV.new_empty(len(logits_BQV), 0, dtype=torch.long)
    return proposal.of_length(num_proposed)
