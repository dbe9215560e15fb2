"""The target: the model that is served, with each row's tokens and hidden states.

Shapes: S rows, L positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from osd.kernels.backend import Backend, PassOutput, Wanted
from osd.machine.arrays import Numbers
from osd.models.context import Context, longest_context
from osd.models.slot_model import SlotModel, head_of
from osd.records.errors import OsdError
from osd.records.shared_rows import SharedRows


class Target:
    """A causal LM over the slot cache, with each row's tokens and hidden states.

    Hidden states are stored because drafters and outcomes need them; no pass is run just for them.

    Args:
        model: a loaded causal LM in eval mode.
        backend: creates what computes.
        target_id: the name under which it is served.
        eos_ids: tokens that end an answer; the model may lack some that its tokenizer has.
        num_slots: rows.
        max_context_tokens: longest row.
        max_new_tokens: most positions of one pass.
        max_round_tokens: most positions of a row in a decoding round.
        is_int4: quantise the layers' weights to four bits.
        hidden_layers: store, instead of the last hidden states, the residual streams that enter these layers, side by
            side; layer 0 is entered by the embedding.
        context_reason: what limits the context, for the operator.

    Raises:
        OsdError: the model cannot be served, or has fewer layers.
    """

    def __init__(
        self,
        model: Any,
        backend: Backend,
        *,
        target_id: str,
        eos_ids: frozenset[int],
        num_slots: int,
        max_context_tokens: int,
        max_new_tokens: int,
        max_round_tokens: int = 1,
        is_int4: bool = False,
        hidden_layers: Sequence[int] = (),
        context_reason: str = "as set",
    ) -> None:
        self.hidden_layers = tuple(hidden_layers)
        num_layers = model.config.get_text_config().num_hidden_layers
        if beyond := [layer for layer in hidden_layers if not 0 <= layer < num_layers]:
            raise OsdError(
                f"the drafter reads what enters layer {beyond[0]} of the target, which has layers 0 to {num_layers - 1}"
            )
        self.backend, self.target_id = backend, target_id
        self.max_context_tokens = longest_context(model.config.get_text_config(), max_context_tokens)
        self.context = Context(self.max_context_tokens, context_reason)
        head_VH = head_of(model)
        self.eos_ids = frozenset(token for token in eos_ids if token < head_VH.shape[0])
        like = head_VH.new_empty(0, max(len(hidden_layers), 1) * head_VH.shape[1])
        self._rows = backend.rows(num_slots, self.max_context_tokens + max_new_tokens, like)
        self.lm = SlotModel(
            model,
            backend,
            num_slots=num_slots,
            max_context_tokens=max_context_tokens,
            max_new_tokens=max_new_tokens,
            frozen=True,
            max_round_tokens=max_round_tokens,
            is_int4=is_int4,
            kept=self._rows,
            hidden_layers=hidden_layers,
        )

    @property
    def tokens_SL(self) -> Tensor:  # noqa: N802 - named by its shape
        """Every row's known tokens; always the same memory."""
        return self._rows.tokens_SL

    @property
    def hidden_SLH(self) -> Tensor:  # noqa: N802 - named by its shape
        """The hidden states by row and position; always the same memory."""
        return self._rows.hidden_SLH

    def adopt(self, other: Target, num_tokens: Sequence[int]) -> None:
        """Take over the rows of another target of the same model, which is not used afterwards.

        Args:
            other: by another back end.
            num_tokens: known positions, by row.
        """
        self.lm.adopt(other.lm, num_tokens)
        for row, num in enumerate(num_tokens):
            self.tokens_SL[row, :num] = other.tokens_SL[row, :num]
            self.hidden_SLH[row, :num] = other.hidden_SLH[row, :num]

    def shared_rows(self) -> SharedRows:
        """The embedding and head, for a drafter to share."""
        head = self.lm.model.get_output_embeddings()
        return SharedRows(
            embedding_VH=self.lm.model.get_input_embeddings().weight,
            head_VH=head.weight,
            head_bias_V=getattr(head, "bias", None),
        )

    def write_tokens(self, row: int, start: int, ids: Sequence[int]) -> None:
        """Write known tokens of a row."""
        self._rows.write(row, start, ids)

    def write_rows(self, starts: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Write known tokens of rows 0, 1, …, all at once."""
        self._rows.write_rows(starts, ids)

    def read(self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: Wanted = "all") -> PassOutput:
        """Run one pass (see `osd.kernels.backend.Way.read`), and store its hidden states."""
        return self.lm.forward(first_row, ids_BQ, starts, logits=logits)

    def clear_row(self, row: int, start: int) -> None:
        """Zero a row's cache from a position on."""
        self.lm.clear_row(row, start)

    def copy_hidden(self, row: int, start: int, stop: int) -> Callable[[], Tensor]:
        """Start copying a row's hidden states to the CPU; the returned function waits for and returns them `[N, H]`."""
        return self._rows.copy_hidden(row, start, stop)

    def swap_rows(self, row: int, other: int, num_tokens: int) -> None:
        """Exchange two rows' first positions, with their tokens and hidden states."""
        self.lm.swap_rows(row, other, num_tokens)
        self._rows.swap(row, other, num_tokens)

    def copy_row(self, source: int, destination: int, num_tokens: int) -> None:
        """Copy a row's first positions to another row, with their tokens and hidden states."""
        self.lm.copy_row(source, destination, num_tokens)
        self._rows.copy(source, destination, num_tokens)
