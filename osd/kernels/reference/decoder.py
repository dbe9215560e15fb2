"""The reference decoder: `Llama` over a flat slot cache, by torch's operations on any device.

Shapes: B rows, Q new positions, H hidden size, V vocabulary, K proposed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from osd.kernels.backend import PassOutput, Proposed, RowMemory, Sizes, Wanted, Way
from osd.kernels.processor import describe
from osd.kernels.reference.attention import SdpaAttention
from osd.kernels.reference.drafting.chain_choice import ChainChoice, Draws
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.llama import Llama
from osd.kernels.reference.logits import MostLikely
from osd.kernels.reference.window import PassWindow
from osd.machine.arrays import Numbers
from osd.machine.transfer import to_device, upload
from osd.records.proposal import DraftBatch
from osd.verify.logits import Logits

MakeLogits = Callable[[Tensor], Logits]


class TorchDecoder:
    """See `osd.kernels.backend.Decoder`.

    Args:
        model: a causal LM for which `is_llama` holds.
        sizes: of the cache.
        kept: where hidden states are stored.
        make_logits: wraps the logits of a pass.
        find: finds the most likely token.
        hidden_layers: see `osd.kernels.backend.Backend.decoder`.
    """

    name = "the fused pass"

    def __init__(
        self,
        model: Any,
        sizes: Sizes,
        *,
        kept: RowMemory | None,
        make_logits: MakeLogits,
        find: MostLikely,
        hidden_layers: Sequence[int] = (),
    ) -> None:
        self.llama = Llama(model, sizes.max_positions)
        self.cache = FlatCache(*self.llama.cache_shape(sizes.num_slots, sizes.max_len), like=self.llama.like)
        self.device = self.llama.like.device
        self._window = PassWindow(self.device)
        self._kept, self._make_logits, self._find = kept, make_logits, find
        self._hidden_layers = tuple(hidden_layers)

    @property
    def computes(self) -> str:
        """See `Passes`."""
        return describe(self.llama.like.device, self.llama.like.dtype)

    @property
    def ways(self) -> Sequence[Way]:
        """See `Decoder`."""
        return [self]

    def drop(self, way: Way) -> None:
        """See `Decoder`: there is only one."""

    def pack(self) -> None:
        """See `Decoder`; nothing to do, since the model's own weights are used."""

    def unpack(self) -> None:
        """See `Decoder`."""

    def read(self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: Wanted) -> PassOutput:
        """See `Way`."""
        window = self._window
        window.set(first_row, starts, ids_BQ.shape[1])
        logits_BQV, hidden_BQH, kept_BQJ = self.run(to_device(ids_BQ, self.device), window, logits)
        if self._kept is not None:
            self._kept.keep(first_row, starts, kept_BQJ)
        return PassOutput(None if logits_BQV is None else self._make_logits(logits_BQV), lambda: hidden_BQH)

    @torch.no_grad()
    def run(self, ids_BQ: Tensor, window: PassWindow, logits: Wanted) -> tuple[Tensor | None, Tensor, Tensor]:
        """Logits (see `Way.read`), last hidden states `[B, Q, H]`, and the hidden states to be stored (see
        `Backend.decoder`). If the window's starts are on the device, this is a function of tensors only.
        """
        attend = SdpaAttention(self.cache, window, *self.llama.rotation, **self.llama.heads._asdict())
        entering = dict.fromkeys(self._hidden_layers, self.llama.like)
        hidden_BQH = self.llama(ids_BQ, attend, entering).view(*ids_BQ.shape, -1)
        kept_BQJ = hidden_BQH
        if self._hidden_layers:
            kept_BQJ = torch.cat([entering[layer] for layer in self._hidden_layers], dim=1).view(*ids_BQ.shape, -1)
        if logits == "none":
            return None, hidden_BQH, kept_BQJ
        return self.llama.head(hidden_BQH if logits == "all" else hidden_BQH[:, -1:]), hidden_BQH, kept_BQJ

    def draft(self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], num_tokens: int) -> Proposed:
        """See `Passes`."""
        return draft_by_passes(self, batch, starts, counts, num_tokens, self._find)


@torch.no_grad()
def draft_by_passes(
    way: Way, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], num_tokens: int, find: MostLikely
) -> Proposed:
    """A draft model's round: one pass over the new tokens, then one per proposed token.

    Args:
        way: runs the passes.
        batch: see `Passes.draft`.
        starts: see `Passes.draft`.
        counts: see `Passes.draft`.
        num_tokens: see `Passes.draft`.
        find: finds the most likely token.
    """
    device = batch.tokens_SL.device
    choice = ChainChoice(max(batch.lengths), Draws.of(batch, num_tokens), num_tokens, find=find)
    rows_B, counts_B = torch.arange(len(starts), device=device), upload(counts, device)
    columns_BQ = upload(starts, device)[:, None] + torch.arange(max(counts), device=device)
    ids_BQ = batch.tokens_SL[rows_B[:, None], columns_BQ.clamp(max=batch.tokens_SL.shape[1] - 1)]
    logits_BV = way.read(0, ids_BQ, starts, logits="all").logits_BQV[rows_B, counts_B - 1]
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    for step in range(choice.num_steps):
        token_B = choice.take(logits_BV[:, :num_tokens])
        if step + 1 < choice.num_steps:
            output = way.read(0, token_B[:, None], [end + step for end in ends], logits="all")
            logits_BV = output.logits_BQV[:, 0]
    return Proposed(choice.token_ids_BK, choice.draft_probs_BKV)
