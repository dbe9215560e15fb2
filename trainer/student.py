"""What the training step, the gate and the loop expect of a drafter that is being trained."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from trainer.acceptance import ChainSums
from trainer.batches import Batch
from trainer.examples import Alignment


class LossTerms(NamedTuple):
    """One term for every position (and depth) that is trained on; their weighted mean is minimised."""

    losses_N: Tensor
    weights_N: Tensor


class Student(Protocol):
    """One drafter in training."""

    kind: str
    config: dict[str, Any]
    """What fixes its shapes, for the manifest."""
    alignment: Alignment
    max_batch_columns: int
    """Most columns it should be given at once, for the memory that its logits take."""

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        ...

    def loss_terms(self, batch: Batch) -> LossTerms:
        """Losses at the columns that are trained on, differentiable."""
        ...

    def acceptance(self, batch: Batch) -> ChainSums:
        """Acceptance by depth at every predicting column, without gradients."""
        ...

    def refresh_vocab(self, counts_V: Tensor, *, seen_before: float = 0.0) -> None:
        """Let a reduced vocabulary follow the traffic; nothing for a drafter that has none.

        Args:
            counts_V: how often each token was seen.
            seen_before: counts for each token that earlier traffic has put into the vocabulary.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """A copy, on the CPU, of what a weight version carries."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over a version's weights.

        Raises:
            WeightsRefusedError: they do not fit, or are not finite; nothing was changed.
        """
        ...

    def twin(self) -> Student:
        """Another of the same shape, with its own weights, sharing what is frozen."""
        ...


def mixed_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Matrix products in `dtype`; weights, norms and losses stay float32. Nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
