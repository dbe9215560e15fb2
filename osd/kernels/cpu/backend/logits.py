"""A pass's logits as bfloat16 bits, which compiled loops read once per question.

`osd.kernels.reference.logits` gives the same answers by torch's operations.

Shapes: R = B * Q rows of logits, S sampled rows, N places, V vocabulary, K most likely tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from osd.kernels.cpu.arguments import NONE, Array, Shapes, Trial, ranking_at
from osd.kernels.cpu.arrays import array, is_finite, tensor
from osd.kernels.cpu.kernels import Kernels
from osd.kernels.reference.logits import TorchLogits
from osd.kernels.reference.logits import most_likely as most_likely_by_torch
from osd.machine.transfer import no_wait
from osd.verify.logits import Logits, RankedTokens, SampledRows
from osd.verify.shaping import RowShaping

_FEW = 1 << 15
"""With fewer logits than this, torch is faster than calling a compiled loop."""
_NO_TOKENS: Array = np.empty((0, 0), np.int64)
_NO_PROBS: Array = np.empty((0, 0, 0), np.float32)


class CpuLogits:
    """See `osd.verify.logits.Logits`.

    Args:
        kernels: the compiled loops.
        bits_RV: the logits, row after row.
        num_positions: Q.
        best_BQ: the index of each largest logit, if the pass computed it.
    """

    def __init__(self, kernels: Kernels, bits_RV: Array, num_positions: int, best_BQ: Array | None = None) -> None:
        self._kernels, self._bits_RV, self._best_BQ = kernels, bits_RV, best_BQ
        self.num_positions, self.vocab_tokens = num_positions, bits_RV.shape[1]

    @classmethod
    def of(cls, kernels: Kernels, logits_BQV: Tensor) -> CpuLogits:
        """From a bfloat16 tensor, which is copied if it is not contiguous."""
        return cls(kernels, array(logits_BQV.contiguous()).reshape(-1, logits_BQV.shape[2]), logits_BQV.shape[1])

    @cached_property
    def tensor_BQV(self) -> Tensor:  # noqa: N802 - named by its shape
        """See `Logits`: the same memory."""
        return tensor(self._bits_RV).view(-1, self.num_positions, self.vocab_tokens)

    @property
    def best_BQ(self) -> Array:  # noqa: N802 - named by its shape
        """See `Logits`."""
        if self._best_BQ is None:
            self._best_BQ = array(most_likely(self._kernels, self.tensor_BQV))
        return self._best_BQ

    @property
    def is_finite_BQ(self) -> Array:  # noqa: N802 - named by its shape
        """See `Logits`."""
        best_R = self.best_BQ.reshape(-1)
        return is_finite(self._bits_RV[np.arange(len(best_R)), best_R]).reshape(-1, self.num_positions)

    def judge(self, sampled: SampledRows) -> Array:
        """See `Logits`."""
        proposal = sampled.proposal
        probs_BKV = None if proposal is None else proposal.draft_probs_BKV
        trial = Trial(
            rows_S=np.array(sampled.rows),
            num_positions=self.num_positions,
            best_BQ=self.best_BQ,
            lengths_S=np.array(sampled.lengths),
            proposed_BK=_NO_TOKENS if proposal is None else np.ascontiguousarray(array(proposal.token_ids_BK)),
            draft_probs_BKV=_NO_PROBS if probs_BKV is None else np.ascontiguousarray(array(probs_BKV)),
            uniform_SQ=np.array(sampled.uniform_SQ, np.float32),
            verdicts_S2=np.empty((len(sampled.rows), 2), np.int64),
            is_blockwise=sampled.rule == "block",
            is_drawn=probs_BKV is not None,
        )
        self._kernels.judge(self._bits_RV, trial, shapes_of(sampled.shapes))
        return trial.verdicts_S2

    def rank(self, places: Sequence[int], chosen: Sequence[int], top_k: int) -> RankedTokens:
        """See `Logits`."""
        ranking = ranking_at(np.array(places, np.int64), np.array(chosen, np.int64), top_k)
        self._kernels.rank(self._bits_RV, ranking)
        return RankedTokens(ranking.chosen_N, ranking.ids_NK, ranking.values_NK, no_wait)

    def replaced(self, logits_BQV: Tensor) -> Logits:
        """See `Logits`; in float32, by torch's operations."""
        is_bfloat16 = logits_BQV.dtype == torch.bfloat16
        return CpuLogits.of(self._kernels, logits_BQV) if is_bfloat16 else TorchLogits(logits_BQV)

    def replace_first(self, row: int, other: Logits) -> None:
        """See `Logits`."""
        self.tensor_BQV[row, 0] = other.tensor_BQV[0, 0]
        self._best_BQ = None


def most_likely(kernels: Kernels, logits: Tensor) -> Tensor:
    """See `osd.kernels.reference.logits.MostLikely`."""
    if logits.dtype != torch.bfloat16 or logits.numel() <= _FEW or not logits.is_contiguous():
        return most_likely_by_torch(logits)
    logits_RV = logits.view(-1, logits.shape[-1])
    ranking = ranking_at(np.arange(len(logits_RV)), NONE, 1)
    kernels.rank(array(logits_RV), ranking)
    return torch.from_numpy(ranking.ids_NK.astype(np.int64)).view(logits.shape[:-1])


def shapes_of(rows: Sequence[RowShaping]) -> Shapes:
    """The rows' shaping parameters as arrays."""
    kinds = np.float32, np.float32, np.int64, np.float32
    return Shapes(*(np.array(column, kind) for column, kind in zip(zip(*rows, strict=True), kinds, strict=True)))
