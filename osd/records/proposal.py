"""The input and output of a drafter, and of a lookup, in a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from osd.machine.arrays import Numbers, tensor
from osd.records.drafter_id import DrafterId
from osd.records.query import SamplingParams


@dataclass(frozen=True, slots=True)
class DraftBatch:
    """The decoding rows 0..B-1 as a drafter sees them. Shapes: S slots, L positions, H hidden size.

    Row b has `num_tokens[b]` known tokens. The target has not processed the last one, so `hidden_SLH[b, t]` (the
    target's last hidden state at position t) is set for t <= num_tokens[b] - 2.

    `tokens_SL` and `hidden_SLH` are the target's own memory, not copies, and stay the same for as long as the target
    serves. Drafters on a GPU rely on that: a captured round reads, in every later round, the memory of the batch that
    it was captured with, so such a drafter must only be given batches of one target. On a CPU, a target that takes over
    another's rows also takes over their memory, and drafters read each batch's own.
    """

    tokens_SL: Tensor
    hidden_SLH: Tensor
    num_tokens: Sequence[int]
    lengths: Sequence[int]
    """Speculation length by row; 0: propose nothing for the row."""
    params: Sequence[SamplingParams]
    generators: Sequence[Random]
    """Each row's random generator."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """The tokens proposed for rows 0..B-1, with the distributions that they were drawn from.

    Shapes: B rows, K tokens of the longest proposal, V vocabulary.
    """

    token_ids_BK: Numbers
    lengths: Sequence[int]
    """Number of tokens proposed for each row, at most K."""
    draft_probs_BKV: Numbers | None
    """`[b, i]` is the distribution that `token_ids_BK[b, i]` was drawn from, over the whole vocabulary (zero outside a
    reduced one). None if no row's tokens were drawn: then each was its drafter's only candidate, that is, drawn with
    probability 1. For rows that decode greedily no distribution is read.
    """
    drafter: DrafterId | None
    """The drafter; None if the proposals of several drafters were merged."""
    certain_rows: frozenset[int] = frozenset()
    """Rows whose tokens were not drawn, though `draft_probs_BKV` exists for others; their part of it is undefined."""

    def of_length(self, num_proposed: int) -> Numbers:
        """The first `num_proposed` tokens of each row, `[B, num_proposed]`."""
        ids_BK = self.token_ids_BK
        return ids_BK if ids_BK.shape[1] == num_proposed else ids_BK[:, :num_proposed]

    def cut(self, lengths: Sequence[int]) -> Proposal | None:
        """The first `lengths[b]` tokens of each row b, which are no more than now; None if that is nothing."""
        longest, probs_BKV = max(lengths), self.draft_probs_BKV
        if not longest:
            return None
        if longest < max(self.lengths):
            probs_BKV = None if probs_BKV is None else _contiguous(probs_BKV[:, :longest])
        ids_BK = _contiguous(self.of_length(longest))
        return replace(self, token_ids_BK=ids_BK, lengths=list(lengths), draft_probs_BKV=probs_BKV)

    def is_drawn(self, row: int) -> bool:
        """Whether a row's tokens were drawn from `draft_probs_BKV`."""
        return self.draft_probs_BKV is not None and row not in self.certain_rows

    def padded(self, num_rows: int) -> Proposal:
        """The proposal for `num_rows` rows, with no tokens for the added ones."""
        added, probs_BKV = num_rows - len(self.lengths), self.draft_probs_BKV
        if not added:
            return self
        return Proposal(
            _padded(self.token_ids_BK, added),
            [*self.lengths, *[0] * added],
            None if probs_BKV is None else _padded(probs_BKV, added),
            self.drafter,
            self.certain_rows,
        )


class RowText(NamedTuple):
    """The known tokens of one decoding row, in the host's memory."""

    domain: str
    """By which earlier answers are grouped."""
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]


class Offer(NamedTuple):
    """Tokens that a lookup found, and how likely they are to be accepted.

    Example: `Offer((17, 4), (0.8, 0.4))` expects 1.2 accepted tokens.
    """

    token_ids: tuple[int, ...]
    reach: tuple[float, ...]
    """For each token, the estimated probability that all tokens up to it are accepted; never increasing."""

    def first(self, num_tokens: int) -> Offer:
        """The first tokens of it."""
        return (
            self if num_tokens >= len(self.token_ids) else Offer(self.token_ids[:num_tokens], self.reach[:num_tokens])
        )

    def num_equal(self, token_ids: Sequence[int]) -> int:
        """Number of tokens that agree with the beginning of `token_ids`."""
        number = 0
        for offered, other in zip(self.token_ids, token_ids, strict=False):
            if offered != other:
                break
            number += 1
        return number


NO_OFFER = Offer((), ())
"""Nothing was found."""


def merge(proposals: Sequence[Proposal], num_rows: int) -> Proposal:
    """Merge proposals for disjoint sets of rows into one for `num_rows` rows."""
    if len(proposals) == 1:
        return proposals[0].padded(num_rows)
    width, device = max(max(one.lengths) for one in proposals), tensor(proposals[0].token_ids_BK).device
    drawn = [tensor(one.draft_probs_BKV) for one in proposals if one.draft_probs_BKV is not None]
    ids_BK = torch.zeros(num_rows, width, dtype=torch.long, device=device)
    probs_BKV = drawn[0].new_zeros(num_rows, width, drawn[0].shape[2]) if drawn else None
    lengths, certain = [0] * num_rows, set[int]()
    for one in proposals:
        rows = [row for row, length in enumerate(one.lengths) if length]
        most = max(one.lengths)
        ids_BK[rows, :most] = tensor(one.token_ids_BK)[rows, :most].long()
        for row in rows:
            lengths[row] = one.lengths[row]
            if not one.is_drawn(row):
                certain.add(row)
        if probs_BKV is not None and one.draft_probs_BKV is not None:
            probs_BKV[rows, :most] = tensor(one.draft_probs_BKV)[rows, :most]
    return Proposal(ids_BK, lengths, probs_BKV, None, frozenset(certain) if drawn else frozenset())


def _contiguous(numbers: Numbers) -> Numbers:
    return numbers.contiguous() if isinstance(numbers, Tensor) else np.ascontiguousarray(numbers)


def _padded(numbers: Numbers, added: int) -> Numbers:
    """With `added` rows of zeros at the end."""
    if isinstance(numbers, Tensor):
        return F.pad(numbers, [0, 0] * (numbers.ndim - 1) + [0, added])
    return np.concatenate((numbers, np.zeros((added, *numbers.shape[1:]), numbers.dtype)))
