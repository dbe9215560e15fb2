"""The `model` drafter in training: any transformers causal LM, distilled at the target's output positions.

Its input is the emitted tokens, which is what serving feeds it at every depth of a chain while proposals are accepted;
one ordinary forward pass therefore trains all depths.

Shapes: B rows, T = C + Q columns (see trainer/examples/batches.py), N positions, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from osd.drafters.weights import check_state, model_state
from trainer.examples.batches import Batch
from trainer.examples.examples import Alignment
from trainer.losses.acceptance import ChainSums, chain_sums, emitted_log_probs, position_acceptance
from trainer.losses.losses import Coarse, coarsen, slots_of
from trainer.students.student import LossTerms, mixed_precision


class ModelStudent:
    """Trains all weights of one causal LM.

    Args:
        model: the LM, with float32 weights and the target's vocabulary.
        loss: one of `trainer.losses.losses.LOSSES`.
        depths: number of depths at which acceptance is measured.
        context_columns: most tokens read before the first predicting column.
        compute_dtype: of matrix products: float32, or bfloat16 where the device is fast at it.
    """

    kind = "model"
    max_batch_columns = 256

    def __init__(
        self,
        model: Any,
        *,
        loss: Callable[[Coarse], Tensor],
        depths: int,
        context_columns: int = 256,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        self._model = model.eval().requires_grad_(True)
        self._loss, self._depths, self._compute_dtype = loss, depths, compute_dtype
        self._device: torch.device = next(model.parameters()).device
        self.config = model.config.to_dict()
        vocab_tokens = model.config.get_text_config().vocab_size
        self.alignment = Alignment(lookahead=1, vocab_tokens=vocab_tokens, context_columns=context_columns)
        self._vocab_ids_V = torch.arange(vocab_tokens, device=self._device)

    def parameters(self) -> list[nn.Parameter]:
        """All weights of the LM."""
        return list(self._model.parameters())

    def loss_terms(self, batch: Batch) -> LossTerms:
        """Losses at the columns that are trained on."""
        batch = batch.to(self._device)
        logits_NV = self.logits(batch)[batch.in_loss_BQ]
        losses_N = self._loss(coarsen(logits_NV, batch.teacher(batch.in_loss_BQ), self._vocab_ids_V))
        return LossTerms(losses_N, torch.ones_like(losses_N))

    @torch.no_grad()
    def acceptance(self, batch: Batch) -> ChainSums:
        """Acceptance of the depths 1 .. `depths`."""
        batch = batch.to(self._device)
        mask_BQ = batch.predicting_BQ
        teacher = batch.teacher(mask_BQ)
        acceptance_BQ = torch.zeros(mask_BQ.shape, device=self._device)
        acceptance_BQ[mask_BQ] = position_acceptance(
            self.logits(batch)[mask_BQ],
            teacher,
            self._vocab_ids_V,
            slots_of(teacher.ids_NK, self._vocab_ids_V, len(self._vocab_ids_V)),
            batch.temperature_B[:, None].expand_as(mask_BQ)[mask_BQ],
        )
        return chain_sums([acceptance_BQ] * self._depths, mask_BQ)

    @torch.no_grad()
    def emitted_log_probs(self, batch: Batch) -> list[Tensor]:
        """See `Student`."""
        batch = batch.to(self._device)
        slots_BQ = slots_of(batch.emitted_BQ, self._vocab_ids_V, len(self._vocab_ids_V))
        return [emitted_log_probs(self.logits(batch), slots_BQ)] * self._depths

    def logits(self, batch: Batch) -> Tensor:
        """Logits `[B, Q, V]` at the predicting columns."""
        with mixed_precision(self._device, self._compute_dtype):
            output = self._model(
                input_ids=batch.input_ids_BT,
                attention_mask=batch.real_BT.long(),
                position_ids=batch.positions_BT,
                logits_to_keep=batch.num_predicting,
                use_cache=False,
            )
        logits_BQV: Tensor = output.logits[..., : len(self._vocab_ids_V)]
        return logits_BQV

    def refresh_vocab(self, counts_V: Tensor, *, seen_before: float = 0.0) -> None:
        """Nothing to do: its vocabulary is the target's."""

    def state(self) -> dict[str, Tensor]:
        """All weights, copied to the CPU; tied ones once."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model_state(self._model).items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a version's weights."""
        check_state(state, model_state(self._model))
        self._model.load_state_dict(dict(state), strict=False)

    def twin(self) -> ModelStudent:
        """A copy of the model."""
        return ModelStudent(
            copy.deepcopy(self._model),
            loss=self._loss,
            depths=self._depths,
            context_columns=self.alignment.context_columns,
            compute_dtype=self._compute_dtype,
        )
