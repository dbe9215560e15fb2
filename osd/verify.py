"""Verification: the target's verdict on every row's proposal, from one pass over all of them.

Shapes: B rows, Q = K + 1 positions (padded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import NamedTuple

import torch
from torch import Tensor

from osd.proposal import Proposal
from osd.rejection import match_greedy, reject_tokenwise
from osd.sampling import penalise, shape_probs
from osd.sequence import Sequence


class Verdict(NamedTuple):
    """What one row keeps of its proposal, and the token that follows."""

    num_accepted: int
    next_token: int
    """Recovered or bonus."""


def verify_rows(logits_BQV: Tensor, rows: Rows[Sequence], proposal: Proposal | None) -> list[Verdict]:
    """Judge each row's proposal against the target's logits at its K + 1 positions.

    Args:
        logits_BQV: row b's position i follows its known tokens and the first i proposed ones.
        rows: the decoding rows.
        proposal: None when no row proposes.
    """
    proposed: list[list[int]] = [[] for _ in rows]
    if proposal is not None:
        ids_BK = proposal.token_ids_BK.tolist()
        proposed = [ids_BK[row][: proposal.lengths[row]] for row in range(len(rows))]
    greedy_ids_BQ = logits_BQV.argmax(dim=-1).tolist()
    verdicts = []
    for row, sequence in enumerate(rows):
        ids, params = proposed[row], sequence.request.params
        if params.is_greedy and not params.has_penalties:
            verdicts.append(Verdict(*match_greedy(greedy_ids_BQ[row][: len(ids) + 1], ids)))
            continue
        logits_QV = penalise(logits_BQV[row, : len(ids) + 1], params, sequence.output_ids, ids)
        if params.is_greedy:
            verdicts.append(Verdict(*match_greedy(logits_QV.argmax(dim=-1).tolist(), ids)))
            continue
        target_probs_QV = shape_probs(logits_QV, params)
        draft_probs_KV = target_probs_QV[:0]
        if proposal is not None and ids:
            assert proposal.draft_probs_BKV is not None
            draft_probs_KV = proposal.draft_probs_BKV[row, : len(ids)]
        uniform_Q = torch.rand(len(ids) + 1, generator=sequence.generator).to(logits_BQV.device)
        proposed_K = torch.tensor(ids, dtype=torch.long, device=logits_BQV.device)
        verdicts.append(Verdict(*reject_tokenwise(target_probs_QV, draft_probs_KV, proposed_K, uniform_Q)))
    return verdicts
