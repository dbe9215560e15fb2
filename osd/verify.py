"""Verification: the target's verdict on every row's proposal, from one pass over all of them.

Shapes: B rows, S of them sampled, K proposed tokens, Q = K + 1 positions (padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from osd.models.transfer import upload
from osd.proposal import Proposal
from osd.rejection import match_greedy, reject_tokenwise
from osd.sampling import Shaping, most_likely, penalise, shape_probs
from osd.sequence import Sequence


def verify_rows(logits_BQV: Tensor, rows: Rows[Sequence], proposal: Proposal | None) -> list[list[int]]:
    """Judge each row's proposal against the target's logits at its K + 1 positions.

    Args:
        logits_BQV: row b's position i follows its known tokens and the first i proposed ones.
        rows: the decoding rows.
        proposal: None when no row proposes.

    Returns:
        What each row commits: the accepted tokens, then the recovered or bonus one.
    """
    device, num_rows = logits_BQV.device, len(rows)
    lengths = list(proposal.lengths) if proposal is not None else [0] * num_rows
    lengths_B = upload(lengths, device)
    proposed_BK = torch.zeros(num_rows, 0, dtype=torch.long, device=device)
    if proposal is not None:
        proposed_BK = proposal.token_ids_BK[:, : max(lengths)]
    logits_BQV = _penalised(logits_BQV, rows, proposed_BK)
    num_accepted_B, next_B = match_greedy(most_likely(logits_BQV), proposed_BK, lengths_B)
    sampled = [row for row, sequence in enumerate(rows) if not sequence.request.params.is_greedy]
    if sampled:
        index_S = upload(sampled, device)
        shaping = Shaping.of([rows[row].request.params for row in sampled], logits_BQV.shape[-1], device)
        target_probs_SQV = shape_probs(logits_BQV[index_S], shaping)
        # Where no sampled row proposes, there is nothing to test: these are only shaped like it.
        draft_probs_SKV = target_probs_SQV[:, : proposed_BK.shape[1]]
        if proposal is not None and proposal.draft_probs_BKV is not None:
            draft_probs_SKV = proposal.draft_probs_BKV[index_S, : proposed_BK.shape[1]]
        uniform_SQ = torch.zeros(len(sampled), proposed_BK.shape[1] + 1)
        for place, row in enumerate(sampled):  # no draw more than it needs, or its neighbours would change the next
            needed = lengths[row] + 1
            uniform_SQ[place, :needed] = torch.rand(needed, generator=rows[row].generator)
        verdict = reject_tokenwise(
            target_probs_SQV, draft_probs_SKV, proposed_BK[index_S], lengths_B[index_S], upload(uniform_SQ, device)
        )
        num_accepted_B[index_S], next_B[index_S] = verdict
    # The round's one wait for the device: all that the host needs to know comes in one copy.
    known = torch.cat((num_accepted_B[:, None], next_B[:, None], proposed_BK), dim=1).tolist()
    return [[*ids[:num_accepted], next_token] for num_accepted, next_token, *ids in known]


def _penalised(logits_BQV: Tensor, rows: Rows[Sequence], proposed_BK: Tensor) -> Tensor:
    """The logits, with the penalties of the rows that have any."""
    if not any(sequence.request.params.has_penalties for sequence in rows):
        return logits_BQV
    logits_BQV = logits_BQV.float()
    penalised = [
        penalise(logits_QV, sequence.request.params, sequence.output_ids, proposed_K)
        if sequence.request.params.has_penalties
        else logits_QV
        for logits_QV, sequence, proposed_K in zip(logits_BQV, rows, proposed_BK, strict=True)
    ]
    return torch.stack(penalised)
