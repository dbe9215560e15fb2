"""The `model` drafter in serving: any small causal LM with the target's vocabulary, over its own slot cache.

A round first reads the tokens committed since the last one (so a drafter that was not called for a while catches up),
then the tokens that it chooses, one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from osd.drafters.weights import check_state, model_state
from osd.kernels.backend import Backend
from osd.machine.transfer import on_side_stream, used_by_stream
from osd.models.slot_model import SlotModel
from osd.ports.drafter import Drafter, SwapIn
from osd.records.drafter_id import DrafterId
from osd.records.proposal import DraftBatch, Proposal

CATCH_UP_TOKENS = 256
"""Most positions per pass while catching up, so that a long prompt does not need one huge pass."""

_ROUND_TOKENS = 17
"""Most positions that a round adds: the longest proposal, and the token before it."""


class ModelDrafter:
    """Serves one causal LM for all rows.

    Args:
        model: a loaded causal LM with the target's vocabulary.
        backend: creates what computes.
        num_slots: rows.
        max_context_tokens: longest row.
        target_vocab_tokens: size of the target's vocabulary.
        name: see `DrafterId`.
    """

    needs_hidden = False

    def __init__(
        self,
        model: Any,
        backend: Backend,
        *,
        num_slots: int,
        max_context_tokens: int,
        target_vocab_tokens: int,
        name: str = "model",
    ) -> None:
        self.id = DrafterId(name, 0)
        self._lm = SlotModel(
            model,
            backend,
            num_slots=num_slots,
            max_context_tokens=max_context_tokens,
            max_new_tokens=CATCH_UP_TOKENS,
            max_round_tokens=_ROUND_TOKENS,
        )
        self._vocab_tokens = target_vocab_tokens
        self._end = [0] * num_slots
        """Number of positions in each row that the drafter has read and that were committed."""

    def reset_row(self, row: int) -> None:
        """Begin a new query in a row. Its cache is zeroed, since even a masked NaN of the last query would spoil it."""
        # Beyond the known positions lie rejected proposals, and padding.
        self._lm.clear_row(row, 0, self._end[row] + CATCH_UP_TOKENS)
        self._end[row] = 0

    def swap_rows(self, row: int, other: int) -> None:
        """Exchange two rows."""
        self._lm.swap_rows(row, other, max(self._end[row], self._end[other]) + CATCH_UP_TOKENS)
        self._end[row], self._end[other] = self._end[other], self._end[row]

    def adopt(self, other: Drafter) -> None:
        """See `Drafter`."""
        assert isinstance(other, ModelDrafter)
        self._lm.adopt(other._lm, other._end)
        other._lm.close()
        self._end = other._end

    def state(self) -> dict[str, Tensor]:
        """The tensors of a drafter version."""
        return model_state(self._lm.model)

    def prepare(self, state: Mapping[str, Tensor], version: int) -> SwapIn:
        """See `Drafter`. The swap copies in place, since captured work reads this memory."""
        expected = self.state()
        check_state(state, expected)
        with on_side_stream(self._lm.device):
            copies = {name: tensor.to(expected[name], copy=True) for name, tensor in state.items()}

        def swap_in() -> None:
            self._lm.model.load_state_dict(
                {name: used_by_stream(tensor) for name, tensor in copies.items()}, strict=False
            )
            self._lm.weights_changed()
            self._lm.clear_non_finite(max(self._end) + CATCH_UP_TOKENS)
            self.id = DrafterId(self.id.name, version)

        return swap_in

    def propose(self, batch: DraftBatch) -> Proposal:
        """Run a chain of `max(lengths)` steps for all rows; rows that asked for fewer are cut."""
        self._read_ahead(batch)
        starts = [min(end, num - 1) for end, num in zip(self._end, batch.num_tokens, strict=False)]
        counts = [num - start for num, start in zip(batch.num_tokens, starts, strict=True)]
        ids_BK, probs_BKV = self._lm.draft(batch, starts, counts, self._vocab_tokens)
        self._end[: len(starts)] = batch.num_tokens
        return Proposal(ids_BK, batch.lengths, probs_BKV, self.id)

    def _read_ahead(self, batch: DraftBatch) -> None:
        """Read all but the last new token of rows with more new tokens than a round adds."""
        for row, num_tokens in enumerate(batch.num_tokens):
            if num_tokens - self._end[row] <= _ROUND_TOKENS:
                continue
            for start in range(self._end[row], num_tokens - 1, CATCH_UP_TOKENS):
                end = min(start + CATCH_UP_TOKENS, num_tokens - 1)
                self._lm.forward(row, batch.tokens_SL[row : row + 1, start:end], [start], logits="none")
            self._end[row] = num_tokens - 1
