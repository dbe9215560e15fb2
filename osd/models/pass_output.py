"""What a pass of a model leaves: logits, and last hidden states.

Shapes: B rows, Q new positions, R = B * Q, H hidden size, V vocabulary.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from osd.kernels.cpu.arguments import Array
from osd.kernels.cpu.kernels import kernels
from osd.kernels.most_likely import most_likely
from osd.machine.arrays import Numbers, array, tensor
from osd.machine.finite import is_finite


class Logits:
    """The logits of a pass, made into what is asked for: a CPU's compiled loops read an array, all else a tensor.

    Args:
        numbers_BQV: the logits.
        best_BQ: the index of each greatest one, where the pass found it on its way.
    """

    def __init__(self, numbers_BQV: Numbers, best_BQ: Numbers | None = None) -> None:
        self._numbers_BQV, self._best_BQ = numbers_BQV, best_BQ
        self.num_positions: int = numbers_BQV.shape[1]
        self.vocab_tokens: int = numbers_BQV.shape[2]

    @cached_property
    def tensor_BQV(self) -> Tensor:  # noqa: N802 - its shape, as everywhere
        """As a tensor."""
        return tensor(self._numbers_BQV)

    @cached_property
    def bits_RV(self) -> Array | None:  # noqa: N802 - as above
        """bfloat16's bits for compiled loops; None where there are no such loops for these logits."""
        numbers_BQV = self._numbers_BQV
        if isinstance(numbers_BQV, Tensor):
            if numbers_BQV.device.type != "cpu" or numbers_BQV.dtype != torch.bfloat16 or kernels() is None:
                return None
            numbers_BQV = array(numbers_BQV.contiguous())
        return numbers_BQV.reshape(-1, self.vocab_tokens) if numbers_BQV.dtype == np.uint16 else None

    @property
    def best_BQ(self) -> Numbers:  # noqa: N802 - as above
        """The index of each greatest logit; of equal ones, the first."""
        if self._best_BQ is None:
            self._best_BQ = most_likely(self.tensor_BQV)
        return self._best_BQ

    @property
    def is_finite_BQ(self) -> Numbers:  # noqa: N802 - as above
        """Whether each position's greatest logit is neither NaN nor infinite, bool.

        A hidden state that is not finite makes all of its logits NaN or infinite, so the greatest tells of every one.
        """
        if self.bits_RV is not None:
            best_R = array(self.best_BQ).reshape(-1)
            return is_finite(self.bits_RV[np.arange(len(best_R)), best_R]).reshape(-1, self.num_positions)
        greatest_BQ1 = self.tensor_BQV.gather(2, tensor(self.best_BQ)[:, :, None])
        return greatest_BQ1[:, :, 0].isfinite()

    def replace_first(self, row: int, other: Logits) -> None:
        """Take the first position of another pass over this row alone in place of this pass's."""
        tensor(self._numbers_BQV)[row, 0] = other.tensor_BQV[0, 0]
        self._best_BQ = None
        self.__dict__.pop("bits_RV", None)  # a copy, where the logits were not contiguous


class PassOutput(NamedTuple):
    """See `SlotModel.forward`."""

    logits: Logits | None
    """At `[B, Q]` or, of the last position only, `[B, 1]`; None when they were not asked for."""
    hidden_BQH: Numbers
    is_kept: bool = False
    """The hidden states were kept by the pass: see `SlotModel.kept_SLH`."""

    @property
    def logits_BQV(self) -> Tensor:  # noqa: N802 - as above
        """As a tensor, where they were asked for."""
        assert self.logits is not None
        return self.logits.tensor_BQV
