"""The check at the start: does a model give, over the slot cache, what it gives by itself?

Shapes: Q new positions, L positions of a row, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from osd.machine.arrays import Numbers, tensor
from osd.models.pass_output import PassOutput

_NEW = 5
"""Positions of the last pass."""
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Of the norm; two right bfloat16 passes over the default target were measured 0.06 to 0.14 apart."""
_MOST_OPERATIONS = 1e12
"""A CPU takes some seconds for so many; a longer check is left out there."""


class Forward(Protocol):
    """See `osd.models.slot_model.SlotModel.forward`."""

    def __call__(
        self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: str, by_kernels: bool
    ) -> PassOutput:
        """One pass."""
        ...


class Row(NamedTuple):
    """A row of the check: its tokens, and what the plain model makes of them."""

    ids_L: Tensor
    logits_QV: Tensor
    """At the last positions; float32, less their mean, for what is added to every logit says nothing."""
    hidden_LH: Tensor
    """float32, with zero for what is not finite: some models overflow where no later position looks."""

    @property
    def start(self) -> int:
        """The last pass's first position."""
        return len(self.ids_L) - _NEW


class UnfitModelError(Exception):
    """Why a model cannot be checked, and so not be served."""


@torch.no_grad()
def plain_rows(model: Any, starts: Sequence[int], last_hidden: Callable[[], Tensor]) -> list[Row]:
    """Rows that end `_NEW` positions after `starts`, each read by the plain model, without a cache.

    Args:
        model: a causal LM of transformers.
        starts: by row.
        last_hidden: the last hidden states of the model's latest pass.

    Raises:
        UnfitModelError: logits or hidden states are not there or are no numbers.
    """
    head = model.get_output_embeddings()
    vocab_tokens, hidden_size = head.weight.shape
    rows = []
    for row, start in enumerate(starts):
        # Scattered over the vocabulary: control tokens in a row send some models where bfloat16 means little.
        ids_L = (997 * (torch.arange(start + _NEW, device=head.weight.device) + 31 * row) + 5) % vocab_tokens
        logits_QV = model(input_ids=ids_L[None], use_cache=False, logits_to_keep=_NEW).logits[0].float()
        hidden_1LH = last_hidden()
        if hidden_1LH.shape != (1, len(ids_L), hidden_size):
            raise UnfitModelError("its last hidden states are not where other models have them")
        if not bool(logits_QV.isfinite().all()):
            raise UnfitModelError(f"its logits are NaN or infinite in {model.dtype}; take another target.dtype")
        logits_QV -= logits_QV.mean(dim=-1, keepdim=True)
        rows.append(Row(ids_L, logits_QV, _numbers(hidden_1LH[0])))
    return rows


@torch.no_grad()
def problem_with(
    forward: Forward, rows: Sequence[Row], dtype: torch.dtype, *, chunk_tokens: int, by_kernels: Sequence[bool]
) -> str:
    """What is wrong with a model's passes over the slot cache, or nothing.

    Every row is read alone, in chunks, up to its last positions; those are read in one pass of all rows.

    Args:
        forward: reads some rows.
        rows: what is right.
        dtype: the model's.
        chunk_tokens: a row's first chunk is of so many tokens, the next of twice as many, and so on.
        by_kernels: for each row's chunks, and last for the pass of all rows: see `SlotModel.forward`.
    """
    hidden: list[list[Tensor]] = []
    for row, (ids_L, _, _) in enumerate(rows):
        start, size, parts = 0, chunk_tokens, []
        while start < rows[row].start:
            stop = min(start + size, rows[row].start)
            read = forward(row, ids_L[None, start:stop], [start], logits="none", by_kernels=by_kernels[row])
            parts.append(_numbers(tensor(read.hidden_BQH)[0]))
            start, size = stop, 2 * size
        hidden.append(parts)
    new_BQ = torch.stack([row.ids_L[row.start :] for row in rows])
    last = forward(0, new_BQ, [row.start for row in rows], logits="all", by_kernels=by_kernels[-1])
    ours_BQV = last.logits_BQV.float()
    ours_BQV = ours_BQV - ours_BQV.mean(dim=-1, keepdim=True)
    hidden_BQH = _numbers(tensor(last.hidden_BQH))
    for what, pairs in (
        ("logits", [(ours_QV, row.logits_QV) for ours_QV, row in zip(ours_BQV, rows, strict=True)]),
        ("last hidden states", [
            (torch.cat((*parts, ours_QH)), row.hidden_LH)
            for parts, ours_QH, row in zip(hidden, hidden_BQH, rows, strict=True)
        ]),
    ):  # fmt: skip
        gap = torch.stack([(ours - right).norm() for ours, right in pairs]).norm()
        share = float(gap / torch.stack([right.norm() for _, right in pairs]).norm())
        if not share <= _TOLERANCE.get(dtype, 0.25):
            return f"its {what} over the slot cache are off by {share:.2g} of their norm"
    return ""


def _numbers(hidden: Tensor) -> Tensor:
    return hidden.float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def is_affordable(model: Any, num_tokens: int) -> bool:
    """Whether reading so many tokens twice takes no longer than a start may wait."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    is_on_cpu: bool = next(model.parameters()).device.type == "cpu"
    return not is_on_cpu or 4 * num_parameters * num_tokens <= _MOST_OPERATIONS
