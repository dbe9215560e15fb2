"""The `eagle3` drafter in training: the same unrolled chain as a `feature` drafter's, with a head of its own.

It differs in what is read and said: entries read several of the target's residual streams, and `lm_head` is trained
with the layer. The head's rows belong to the vocabulary that they were trained with, so the vocabulary stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from osd.kernels.reference.drafting.eagle3_net import Eagle3Net
from trainer.examples.batches import Batch
from trainer.losses.losses import slot_table
from trainer.students.feature_student import FeatureStudent
from trainer.students.student import mixed_precision

_MOST_CONTEXT_COLUMNS = 1024
"""Context of an example; published heads attend to all entries, and a batch must end somewhere."""


class Eagle3Student(FeatureStudent):
    """Trains the drafter's `Eagle3Net`; see `FeatureStudent` for the arguments."""

    kind = "eagle3"

    def _prepare(self) -> None:
        net = self._eagle3
        self._embedding_VH = net.embedding_VH(self._shared)
        self.alignment = replace(
            self.alignment,
            hidden_size=net.config.fused_size,
            context_columns=min(net.config.window_tokens - 1, _MOST_CONTEXT_COLUMNS),
            trained_context_columns=None,
        )

    def refresh_vocab(self, counts_V: Tensor, *, seen_before: float = 0.0) -> None:
        """See `Student`: nothing, since `lm_head` was trained with this vocabulary."""

    @property
    def _eagle3(self) -> Eagle3Net:
        assert isinstance(self.net, Eagle3Net)
        return self.net

    def _take_head_rows(self) -> None:
        self._slot_V = slot_table(self.net.vocab_ids_R, self.net.config.target_vocab_tokens)

    def _head_for(self, batch: Batch) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        return self._logits, self._slot_V  # its head is trained, so all of its rows take part

    def _logits(self, feature_NH: Tensor) -> Tensor:
        with mixed_precision(self._device, self._compute_dtype):
            return self._eagle3.head(feature_NH)
