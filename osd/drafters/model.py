"""The `model` drafter, serving side: any small causal LM with the target's vocabulary, over its own slot cache.

Each round it reads the tokens that were committed since (all of them at once, so a drafter that was not called for a
while catches up by itself), then its own choices one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from osd.drafters.weights import check_state, model_state
from osd.kernels.backend import Backend
from osd.machine.transfer import beside, used_here
from osd.models.slot_model import SlotModel
from osd.ports.drafter import Drafter, SwapIn
from osd.records.drafter_id import DrafterId
from osd.records.proposal import DraftBatch, Proposal

_CATCH_UP_TOKENS = 256
"""Most positions read in one pass while catching up with a row, so that no long prompt needs a giant pass."""

_ROUND_TOKENS = 17
"""Most positions that a round adds: the longest speculation, and the token after it."""


class ModelDrafter:
    """Serves one causal LM for all rows.

    Args:
        model: a loaded causal LM with the target's vocabulary.
        backend: what computes.
        num_slots: rows.
        max_context_tokens: longest row.
        target_vocab_tokens: size of the target's output.
    """

    needs_hidden = False

    def __init__(
        self, model: Any, backend: Backend, *, num_slots: int, max_context_tokens: int, target_vocab_tokens: int
    ) -> None:
        self.id = DrafterId("model", 0)
        self._lm = SlotModel(
            model,
            backend,
            num_slots=num_slots,
            max_context_tokens=max_context_tokens,
            max_new_tokens=_CATCH_UP_TOKENS,
            max_round_tokens=_ROUND_TOKENS,
        )
        self._vocab_tokens = target_vocab_tokens
        self._end = [0] * num_slots
        """Positions of each row that the drafter has read and that are known to be right."""

    def reset_row(self, row: int) -> None:
        """A new query starts in the row. What the last one left is zeroed: even masked, a NaN would spoil it."""
        # Beyond what is known lie its own proposals, and padding beside rows with more to read.
        self._lm.clear_row(row, 0, self._end[row] + _CATCH_UP_TOKENS)
        self._end[row] = 0

    def swap_rows(self, row: int, other: int) -> None:
        """Let two rows change places."""
        self._lm.swap_rows(row, other, max(self._end[row], self._end[other]))
        self._end[row], self._end[other] = self._end[other], self._end[row]

    def adopt(self, other: Drafter) -> None:
        """See `Drafter`."""
        assert isinstance(other, ModelDrafter)
        self._lm.adopt(other._lm, other._end)
        other._lm.close()
        self._end = other._end

    def state(self) -> dict[str, Tensor]:
        """What a weight version carries."""
        return model_state(self._lm.model)

    def prepare(self, state: Mapping[str, Tensor], version: int) -> SwapIn:
        """See `Drafter`. The swap copies in place: captured work reads this very memory."""
        expected = self.state()
        check_state(state, expected)
        with beside(self._lm.device):
            copies = {name: tensor.to(expected[name], copy=True) for name, tensor in state.items()}

        def swap_in() -> None:
            self._lm.model.load_state_dict({name: used_here(tensor) for name, tensor in copies.items()}, strict=False)
            self._lm.weights_changed()
            self._lm.clear_non_finite()
            self.id = DrafterId("model", version)

        return swap_in

    def propose(self, batch: DraftBatch) -> Proposal:
        """A chain of `max(lengths)` steps for all rows; rows that want fewer are cut."""
        self._read_ahead(batch)
        starts = [min(end, num - 1) for end, num in zip(self._end, batch.num_tokens, strict=False)]
        counts = [num - start for num, start in zip(batch.num_tokens, starts, strict=True)]
        ids_BK, probs_BKV = self._lm.draft(batch, starts, counts, self._vocab_tokens)
        self._end[: len(starts)] = batch.num_tokens
        return Proposal(ids_BK, batch.lengths, probs_BKV, self.id)

    def _read_ahead(self, batch: DraftBatch) -> None:
        """Bring rows with more to read than a round adds (a query's first, or after a pause) up to their last token."""
        for row, num_tokens in enumerate(batch.num_tokens):
            if num_tokens - self._end[row] <= _ROUND_TOKENS:
                continue
            for start in range(self._end[row], num_tokens - 1, _CATCH_UP_TOKENS):
                end = min(start + _CATCH_UP_TOKENS, num_tokens - 1)
                self._lm.forward(row, batch.tokens_SL[row : row + 1, start:end], [start], logits="none")
            self._end[row] = num_tokens - 1
