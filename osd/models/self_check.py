"""The check at start: a model's outputs over the slot cache must equal its plain outputs.

Shapes: Q new positions, L positions of a row, H hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from osd.kernels.backend import Sizes, Way

_log = logging.getLogger(__name__)
_NEW = 5
"""New positions of the last pass."""
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Relative to the norm; two correct bfloat16 passes over the default target differ by 0.06 to 0.14."""
_MOST_OPERATIONS = 1e12
"""Number of operations that takes a CPU some seconds; a longer check is skipped there."""
_STARTS = (11, 7, 2)
"""Where each row's last pass begins."""
_CHUNK_TOKENS = 4
"""Tokens of a row's first prefill chunk; each further chunk has twice as many."""
_BEYOND = 8
"""How far beyond a sliding window's size a row of the check ends, before its last pass."""
_LONG = 300
"""Length of a row over which kernels need several steps."""


class Row(NamedTuple):
    """A row of the check: its tokens, and the plain model's outputs for them."""

    ids_L: Tensor
    logits_QV: Tensor
    """At the last positions; float32, minus their mean, since a constant added to all logits has no meaning."""
    hidden_LH: Tensor
    """float32, with NaN and infinity as zero: some models overflow at positions that no later one attends to."""

    @property
    def start(self) -> int:
        """The first position of the last pass."""
        return len(self.ids_L) - _NEW


class UnfitModelError(Exception):
    """The reason why a model cannot be checked, and so cannot be served."""


class SelfCheck:
    """Compares passes over the slot cache with the plain model on a few rows.

    Args:
        model: a transformers causal LM.
        reaches: how many positions the attention of each type of layer spans; None: all.
        sizes: of the cache.
    """

    def __init__(self, model: Any, reaches: dict[str, int | None], sizes: Sizes) -> None:
        self.model, self._reaches, self._sizes = model, reaches, sizes

    def cases(self, last_hidden: Callable[[], Tensor]) -> list[list[Row]]:
        """Rows near the beginning, and rows beyond each sliding window.

        Args:
            last_hidden: returns the last hidden states of the model's latest pass.

        Raises:
            UnfitModelError: logits or hidden states are missing, or hold NaN or infinity.
        """
        starts = [_STARTS]
        for reach in {reach for reach in self._reaches.values() if reach}:
            beyond = reach + _BEYOND
            if beyond <= self._sizes.max_positions and _is_affordable(self.model, beyond):
                starts.append((beyond, *_STARTS[1:]))
            else:
                _log.info("not checked beyond its window of %d tokens: it would take long, or is not served", reach)
        return [self._rows(some, last_hidden) for some in starts]

    def long_cases(self, last_hidden: Callable[[], Tensor]) -> list[list[Row]]:
        """Rows near the beginning, with a long row beside them; see `cases`."""
        starts = _STARTS[: self._sizes.num_slots]
        long = max(min(_LONG, self._sizes.max_positions - max(starts)), starts[0])
        return [self._rows(some, last_hidden) for some in (starts, (long, *starts[1:]))]

    @torch.no_grad()
    def _rows(self, starts: Sequence[int], last_hidden: Callable[[], Tensor]) -> list[Row]:
        """Rows that end `_NEW` positions after `starts`, with the plain model's outputs, without a cache."""
        model, head = self.model, self.model.get_output_embeddings()
        vocab_tokens, hidden_size = head.weight.shape
        rows = []
        for row, start in enumerate(starts[: self._sizes.num_slots]):
            # Ids spread over the vocabulary: some models give meaningless bfloat16 output for runs of control tokens.
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

    def problem_with(self, way: Way, cases: Sequence[Sequence[Row]]) -> str:
        """What is wrong with an implementation of passes; empty if nothing is."""
        dtype = next(self.model.parameters()).dtype
        return next(filter(None, (_problem_with(way, rows, dtype) for rows in cases)), "")


@torch.no_grad()
def _problem_with(way: Way, rows: Sequence[Row], dtype: torch.dtype) -> str:
    """Prefills each row alone, in chunks, up to its last positions; those are read in one pass over all rows."""
    hidden: list[list[Tensor]] = []
    for row, (ids_L, _, _) in enumerate(rows):
        start, size, parts = 0, _CHUNK_TOKENS, []
        while start < rows[row].start:
            stop = min(start + size, rows[row].start)
            read = way.read(row, ids_L[None, start:stop], [start], logits="none")
            parts.append(_numbers(read.hidden_BQH[0]))
            start, size = stop, 2 * size
        hidden.append(parts)
    new_BQ = torch.stack([row.ids_L[row.start :] for row in rows])
    last = way.read(0, new_BQ, [row.start for row in rows], logits="all")
    ours_BQV = last.logits_BQV.float()
    ours_BQV = ours_BQV - ours_BQV.mean(dim=-1, keepdim=True)
    hidden_BQH = _numbers(last.hidden_BQH)
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


def _is_affordable(model: Any, num_tokens: int) -> bool:
    """Whether two passes over this many tokens are quick enough for a start."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    is_on_cpu: bool = next(model.parameters()).device.type == "cpu"
    return not is_on_cpu or 4 * num_parameters * num_tokens <= _MOST_OPERATIONS
