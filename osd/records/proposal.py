"""What a drafter is given, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from osd.machine.arrays import Numbers
from osd.records.query import SamplingParams


@dataclass(frozen=True, slots=True)
class DraftBatch:
    """The decoding rows 0..B-1 as a drafter sees them. Shapes: S slots, L positions, H hidden size.

    Row b holds `num_tokens[b]` known tokens, the last of which the target has not read yet, so `hidden_SLH[b, t]`
    (the target's last hidden state at position t) is set for t <= num_tokens[b] - 2.
    """

    tokens_SL: Tensor
    hidden_SLH: Tensor
    num_tokens: Sequence[int]
    lengths: Sequence[int]
    """Speculation length by row; 0: propose nothing for it."""
    params: Sequence[SamplingParams]
    generators: Sequence[Random]
    """Each row draws from its own."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens offered by one drafter version, with the very distributions they were drawn from.

    `draft_probs_BKV[b, i]` is the distribution of `token_ids_BK[b, i]`, over the whole vocabulary (zero outside a
    reduced one). None when every row is greedy: a greedy proposal is matched, not tested.
    """

    token_ids_BK: Numbers
    lengths: Sequence[int]
    draft_probs_BKV: Numbers | None
    drafter_version: int

    def of_length(self, num_proposed: int) -> Numbers:
        """The first so many of each row, `[B, K]`."""
        ids_BK = self.token_ids_BK
        return ids_BK if ids_BK.shape[1] == num_proposed else ids_BK[:, :num_proposed]

    def padded(self, num_rows: int) -> Proposal:
        """With rows at the end that propose nothing, `num_rows` in all."""
        added, probs_BKV = num_rows - len(self.lengths), self.draft_probs_BKV
        if not added:
            return self
        return Proposal(
            _padded(self.token_ids_BK, added),
            [*self.lengths, *[0] * added],
            None if probs_BKV is None else _padded(probs_BKV, added),
            self.drafter_version,
        )


def _padded(numbers: Numbers, added: int) -> Numbers:
    """With so many rows of zeros at the end."""
    if isinstance(numbers, Tensor):
        return F.pad(numbers, [0, 0] * (numbers.ndim - 1) + [0, added])
    return np.concatenate((numbers, np.zeros((added, *numbers.shape[1:]), numbers.dtype)))
