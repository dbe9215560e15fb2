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
from osd.sampling import Shape, Shaping, most_likely, penalise, shape_probs, uniforms
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
    if best_BQ is None and (any(is_greedy_B) or can_judge(logits_BQV)):
        best_BQ = most_likely(penalised_BQV)
    if best_BQ is not None and any(is_greedy_B):
        columns.append(best_BQ)
    if not all(is_greedy_B):
        columns.append(_verdicts(logits_BQV, penalised_BQV, best_BQ, rows, proposal, lengths))
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
    if len(columns) > 1 and columns[0].device.type == "cpu":
        return [list(chain.from_iterable(parts)) for parts in zip(*(one.tolist() for one in columns), strict=True)]
    known: list[list[int]] = (columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)).tolist()
    return known


def _verdicts(
    logits_BQV: Tensor,
    penalised_BQV: Tensor,
    best_BQ: Tensor | None,
    rows: Rows[Sequence],
    proposal: Proposal | None,
    lengths: list[int],
) -> Tensor:
    """How many proposed tokens each row keeps, and the token that follows them, `[B, 2]`; zeros for greedy rows."""
    params, found = [sequence.request.params for sequence in rows], []
    # Apart, so that nobody's draws depend on the company: what is penalised is float32, and judged by other code.
    for has_penalties, own_BQV in ((False, logits_BQV), (True, penalised_BQV)):
        sampled = [b for b, one in enumerate(params) if not one.is_greedy and one.has_penalties == has_penalties]
        if sampled:
            own_lengths = [lengths[row] for row in sampled]
            found.append((sampled, _judged(own_BQV, best_BQ, rows, sampled, own_lengths, proposal)))
    if len(found) == 1 and len(found[0][0]) == len(rows):
        return found[0][1]
    verdicts_B2 = found[0][1].new_zeros(len(rows), 2)
    for sampled, verdicts_S2 in found:
        verdicts_B2.index_copy_(0, upload(sampled, verdicts_B2.device), verdicts_S2)
    return verdicts_B2


def _judged(
    logits_BQV: Tensor,
    best_BQ: Tensor | None,
    rows: Rows[Sequence],
    sampled: list[int],
    lengths: list[int],
    proposal: Proposal | None,
) -> Tensor:
    """Of these rows alone, `[S, 2]`."""
    vocab_tokens, device = logits_BQV.shape[-1], logits_BQV.device
    params, num_proposed = [rows[row].request.params for row in sampled], max(proposal.lengths) if proposal else 0
    # No draw more than it needs, or its neighbours would change the next.
    draws = [uniforms(rows[row].generator, n + 1, num_proposed + 1) for row, n in zip(sampled, lengths, strict=True)]
    if best_BQ is not None and can_judge(logits_BQV):
        shapes = [Shape.of(one, vocab_tokens) for one in params]
        return verdicts(logits_BQV, best_BQ, sampled, lengths, proposal, shapes, draws)
    index_S, lengths_S = upload([sampled, lengths], device)
    target_probs_SQV = shape_probs(logits_BQV[index_S], Shaping.of(params, vocab_tokens, device))
    # Where no sampled row proposes, there is nothing to test: these are only shaped like it.
    draft_probs_SKV = target_probs_SQV[:, :num_proposed]
    if proposal is not None and proposal.draft_probs_BKV is not None:
        draft_probs_SKV = proposal.draft_probs_BKV[index_S, :num_proposed]
    proposed_SK = _proposed(proposal, num_proposed, logits_BQV)[index_S]
    verdict = reject_tokenwise(target_probs_SQV, draft_probs_SKV, proposed_SK, lengths_S, upload(draws, device))
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
