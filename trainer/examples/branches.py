"""Training examples from rejected proposals: the part of a round's chain from its first rejected token on.

Let a round's last known token be at position A, and d_1 .. d_L be proposed for positions A + 1 .. A + L, of which a < L
are accepted. Depths 1 .. a + 1 of its chain read emitted tokens, and so are part of the unrolled chains that begin at
every column (`FeatureStudent.features`). Here the chain *branches* off the emitted text: depth a + 2 reads the
rejected token d_{a+1}, depth a + 3 reads d_{a+2}, and so on. The target's pass over the proposal has read the same
tokens, so its distributions after them are known (`Outcome.rejected_top_ids`).

That is training on the drafter's own text, on-policy distillation (Agarwal et al. 2023, arXiv 2306.13649; for drafters
Draft-OPD, arXiv 2605.29343).

Shapes: B rows, W branches, D = number of depths from 2 on, K teacher ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from osd.records.outcome import Outcome
from osd.records.outcome_arrays import rejected_arrays
from trainer.losses.losses import Teacher

_NO_TOKEN = -1
_LOWEST = float(torch.finfo(torch.float16).min)


class Branches(NamedTuple):
    """Branches with their depths side by side: `[..., i]` of an array with D is depth i + 2.

    In a batch, every field has a leading dimension B.
    """

    column_W: Tensor
    """int64: predicting column at which the chain began, its depth 1."""
    tokens_WD: Tensor
    """int64: the token read; -1 at depths before the branch, and where nothing was drafted any more."""
    teacher_ids_WDK: Tensor
    """int64: the target's most likely tokens after it; -1 if there is nothing to learn."""
    teacher_log_probs_WDK: Tensor
    """float32."""

    @property
    def num_branches(self) -> int:
        """W."""
        return self.column_W.shape[-1]

    def in_loss(self, depth: int) -> Tensor:
        """Which branches are trained on at a depth, bool `[..., W]`."""
        return self.teacher_ids_WDK[..., depth - 2, 0] >= 0

    def teacher(self, depth: int) -> Teacher:
        """The teacher's values of these branches; no token was emitted there."""
        mask = self.in_loss(depth)
        ids_NK = self.teacher_ids_WDK[..., depth - 2, :][mask]
        log_probs_NK = self.teacher_log_probs_WDK[..., depth - 2, :][mask]
        return Teacher(ids_NK, log_probs_NK, torch.full_like(ids_NK[:, 0], _NO_TOKEN))

    def to(self, device: torch.device) -> Branches:
        """The same branches on another device."""
        return Branches(*(one.to(device) for one in self))

    def between(self, first: int, end: int) -> Branches | None:
        """Branches whose emitted part is within columns first .. end - 1, now counted from `first`; None: none is."""
        num_accepted_W = (self.tokens_WD >= 0).long().argmax(dim=1)
        inside_W = (self.column_W >= first) & (self.column_W + num_accepted_W < end)
        if not bool(inside_W.any()):
            return None
        columns_W, *others = (one[inside_W] for one in self)
        return Branches(columns_W - first, *others)


def branches_of(outcome: Outcome, max_depth: int) -> Branches | None:
    """An outcome's branches, down to a depth, with columns as absolute positions; None if there are none.

    Args:
        outcome: one for which `trainer.examples.examples.unfit_because` is empty.
        max_depth: the number of depths that a chain is unrolled to.
    """
    ids_R, top_ids_RK, log_probs_RK = rejected_arrays(outcome)
    top_ids_RK = np.where(np.isfinite(log_probs_RK).all(axis=1, keepdims=True), top_ids_RK, _NO_TOKEN)
    columns, sources, places = list[int](), list[int](), list[tuple[int, int]]()
    position, source = len(outcome.prompt_ids), 0  # of the last known token; in the arrays
    for round_, num_rejected in zip(outcome.rounds, outcome.num_rejected(), strict=True):
        num_depths = min(num_rejected, max_depth - 1 - round_.accepted)
        if num_depths > 0:
            places += [(len(columns), round_.accepted + i) for i in range(num_depths)]
            sources += range(source, source + num_depths)
            columns.append(position - 1)
        position, source = position + round_.accepted + 1, source + num_rejected
    if not columns:
        return None
    shape = len(columns), max_depth - 1
    tokens_WD = torch.full(shape, _NO_TOKEN)
    teacher_ids_WDK = torch.full((*shape, outcome.rejected_top_k), _NO_TOKEN)
    log_probs_WDK = torch.full((*shape, outcome.rejected_top_k), _LOWEST)
    to = tuple(torch.tensor(places).T)
    tokens_WD[to] = torch.from_numpy(ids_R[sources].astype("int64"))
    teacher_ids_WDK[to] = torch.from_numpy(top_ids_RK[sources].astype("int64"))
    log_probs_WDK[to] = torch.from_numpy(log_probs_RK[sources].astype("float32"))
    return Branches(torch.tensor(columns), tokens_WD, teacher_ids_WDK, log_probs_WDK)


def pad_branches(rows: Sequence[Branches | None]) -> Branches | None:
    """The branches of a batch's rows, padded to the same shapes; None if there are none."""
    present = [one for one in rows if one is not None]
    if not present:
        return None
    width, depths = max(one.num_branches for one in present), present[0].tokens_WD.shape[1]
    top_k = max(one.teacher_ids_WDK.shape[2] for one in present)
    batch = Branches(
        torch.zeros(len(rows), width, dtype=torch.long),
        torch.full((len(rows), width, depths), _NO_TOKEN),
        torch.full((len(rows), width, depths, top_k), _NO_TOKEN),
        torch.full((len(rows), width, depths, top_k), _LOWEST),
    )
    for row, own in enumerate(rows):
        if own is None:
            continue
        num, own_top_k = own.num_branches, own.teacher_ids_WDK.shape[2]
        batch.column_W[row, :num] = own.column_W
        batch.tokens_WD[row, :num] = own.tokens_WD
        batch.teacher_ids_WDK[row, :num, :, :own_top_k] = own.teacher_ids_WDK
        batch.teacher_log_probs_WDK[row, :num, :, :own_top_k] = own.teacher_log_probs_WDK
    return batch
