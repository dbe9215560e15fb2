"""The interface of a drafter in training, as the training step, the gate and the loop use it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from trainer.examples.batches import Batch
from trainer.examples.examples import Alignment
from trainer.losses.acceptance import ChainSums


class LossTerms(NamedTuple):
    """A loss and a weight for every position and depth that is trained on; the weighted mean is minimised."""

    losses_N: Tensor
    weights_N: Tensor


class Student(Protocol):
    """A drafter in training."""

    kind: str
    config: dict[str, Any]
    """The configuration that fixes the tensors' shapes; stored in the manifest."""
    alignment: Alignment
    max_batch_columns: int
    """Most columns per batch, which limits the memory of the logits."""

    def parameters(self) -> list[nn.Parameter]:
        """The parameters to train."""
        ...

    def loss_terms(self, batch: Batch) -> LossTerms:
        """Differentiable losses at the columns that are trained on."""
        ...

    def acceptance(self, batch: Batch) -> ChainSums:
        """Acceptance by depth at every predicting column, without gradients."""
        ...

    def emitted_log_probs(self, batch: Batch) -> list[Tensor]:
        """By depth, the log-probability `[B, Q]` of the token that was emitted; -inf for one it cannot say.

        Without gradients, at temperature 1; depth d means nothing before column d - 1, nor at padding.
        """
        ...

    def refresh_vocab(self, counts_V: Tensor, *, seen_before: float = 0.0) -> None:
        """Choose a reduced vocabulary anew by token counts; nothing for a drafter without one.

        Args:
            counts_V: how often each token was seen in the traffic.
            seen_before: count added to each token of the present vocabulary.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """The tensors of a drafter version, copied to the CPU."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a version's tensors.

        Raises:
            WeightsRefusedError: they do not fit, or hold NaN or infinity; nothing was changed.
        """
        ...

    def twin(self) -> Student:
        """Another student of the same shape with its own weights; frozen tensors are shared."""
        ...


def mixed_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Autocast of matrix products to `dtype` (none for float32); weights, norms and losses stay float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)
