"""The target: the model whose output is served, with what it keeps of every row.

Shapes: S rows, L positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from osd.machine.arrays import Numbers, array, exchange, tensor
from osd.machine.finite import with_zeros
from osd.machine.transfer import arrival, upload
from osd.models.pass_output import PassOutput
from osd.models.shared_rows import SharedRows
from osd.models.slot_model import SlotModel


class Target:
    """A causal LM over the slot cache, with each row's tokens and last hidden states.

    The hidden states are kept because drafters read them and outcomes carry them: no pass is ever run for them.

    Args:
        model: a loaded causal LM in eval mode.
        target_id: what clients call it.
        eos_ids: tokens that end an answer.
        num_slots: rows.
        max_context_tokens: longest row.
        max_new_tokens: most positions of one pass.
        max_round_tokens: most positions of a row in a decoding pass.
        is_int4: round the layers' weights to four bits.
    """

    def __init__(
        self,
        model: Any,
        *,
        target_id: str,
        eos_ids: frozenset[int],
        num_slots: int,
        max_context_tokens: int,
        max_new_tokens: int,
        max_round_tokens: int = 1,
        is_int4: bool = False,
    ) -> None:
        self.lm = SlotModel(
            model,
            num_slots=num_slots,
            max_context_tokens=max_context_tokens,
            max_new_tokens=max_new_tokens,
            frozen=True,
            max_round_tokens=max_round_tokens,
            is_int4=is_int4,
        )
        self.target_id = target_id
        self.eos_ids = eos_ids
        self.max_context_tokens = self.lm.max_context_tokens
        length = self.max_context_tokens + max_new_tokens
        self._is_on_cpu = self.lm.device.type == "cpu"
        self._keep_in(
            torch.zeros(num_slots, length, dtype=torch.long, device=self.lm.device),
            torch.zeros(num_slots, length, self.lm.hidden_size, dtype=self.lm.dtype, device=self.lm.device),
        )

    def adopt(self, other: Target, num_tokens: Sequence[int]) -> None:
        """Go on with the rows of another target of the same model, which is not used after this.

        Args:
            other: its passes are by torch's operations, those of this one by compiled kernels.
            num_tokens: by row, how many positions were read.
        """
        self.lm.adopt(other.lm, num_tokens)
        self._keep_in(other.tokens_SL, other.hidden_SLH)

    def _keep_in(self, tokens_SL: Tensor, hidden_SLH: Tensor) -> None:
        self.tokens_SL, self.hidden_SLH = tokens_SL, hidden_SLH
        self.lm.kept_SLH = hidden_SLH
        if self._is_on_cpu:  # where nothing writes faster than numpy
            self._tokens, self._hidden = tokens_SL.numpy(), array(hidden_SLH)

    def shared_rows(self) -> SharedRows:
        """The embedding and head, for a drafter to share."""
        head = self.lm.model.get_output_embeddings()
        return SharedRows(
            embedding_VH=self.lm.model.get_input_embeddings().weight,
            head_VH=head.weight,
            head_bias_V=getattr(head, "bias", None),
        )

    def write_tokens(self, row: int, start: int, ids: Sequence[int]) -> None:
        """Note known tokens of a row."""
        self.tokens_SL[row, start : start + len(ids)] = upload(ids, self.lm.device)

    def write_rows(self, starts: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Note known tokens of rows 0, 1, …, all at once."""
        if self._is_on_cpu:
            for row, (start, one) in enumerate(zip(starts, ids, strict=True)):
                self._tokens[row, start : start + len(one)] = one
            return
        length, known = self.tokens_SL.shape[1], [token for one in ids for token in one]
        if not known:
            return
        firsts = [row * length + start for row, start in enumerate(starts)]
        places = [first + offset for first, one in zip(firsts, ids, strict=True) for offset in range(len(one))]
        places_N, known_N = upload([places, known], self.lm.device)
        self.tokens_SL.view(-1).scatter_(0, places_N, known_N)

    def read(self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: str = "all") -> PassOutput:
        """One pass (see SlotModel.forward) that also keeps the hidden states of what was read.

        Of them zero is kept where they are not finite: a drafter would carry a NaN on, and so would training.
        """
        output = self.lm.forward(first_row, ids_BQ, starts, logits=logits)
        window = self.lm.window
        if output.is_kept:
            return output
        finite_BQH = with_zeros(output.hidden_BQH)
        if self._is_on_cpu:
            for row, (start, hidden_QH) in enumerate(zip(starts, array(finite_BQH), strict=True), first_row):
                self._hidden[row, start : start + window.num_new] = hidden_QH
        else:
            self.hidden_SLH[window.rows_B1, window.positions_BQ] = tensor(finite_BQH)
        return output

    def clear_row(self, row: int, start: int) -> None:
        """Zero what the cache holds of a row from a position on."""
        self.lm.clear_row(row, start)

    def copy_hidden(self, row: int, start: int, stop: int) -> Callable[[], Tensor]:
        """Copy a row's hidden states of some positions to the CPU; what returns them once they are there, `[N, H]`."""
        if self._is_on_cpu:
            return partial(tensor, self._hidden[row, start:stop].copy())
        on_their_way = self.hidden_SLH[row, start:stop].to("cpu", torch.bfloat16, copy=True, non_blocking=True)
        wait = arrival(self.lm.device)

        def arrived() -> Tensor:
            wait()
            return on_their_way

        return arrived

    def swap_rows(self, row: int, other: int, num_tokens: int) -> None:
        """Let two rows' first positions change places, and what is known of them."""
        self.lm.swap_rows(row, other, num_tokens)
        for kept in self._kept:
            exchange(kept[row, :num_tokens], kept[other, :num_tokens])

    def copy_row(self, source: int, destination: int, num_tokens: int) -> None:
        """Write a row's first positions over another row's, with what is known of them."""
        self.lm.copy_row(source, destination, num_tokens)
        for kept in self._kept:
            kept[destination, :num_tokens] = kept[source, :num_tokens]

    @property
    def _kept(self) -> tuple[Any, Any]:
        return (self._tokens, self._hidden) if self._is_on_cpu else (self.tokens_SL, self.hidden_SLH)
