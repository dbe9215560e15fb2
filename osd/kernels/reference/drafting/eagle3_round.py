"""The rounds of an `eagle3` drafter, by torch's operations on any device.

As in `osd.kernels.reference.drafting.feature_round`, a round first reads the entries whose hidden states the target has
computed since the last round, then feeds the head its own output. Published heads attend to the whole context, so the
layer reads its cache from the first entry to the longest row's last one.

Shapes: S slots, B rows, T new entries (padded), W entries read, H hidden size, J size of the target's hidden states,
R reduced vocabulary, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.kernels.backend import Proposed
from osd.kernels.reference.drafting.eagle3_net import Eagle3Net
from osd.kernels.reference.drafting.feature_round import propose_by_steps, read_entries
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.logits import MostLikely
from osd.records.proposal import DraftBatch
from osd.records.shared_rows import SharedRows

_CHUNK_ENTRIES = 512
"""Most entries of a prompt that are read in one pass, which bounds the attention mask."""


class Eagle3Round:
    """See `osd.kernels.backend.FeatureRound`.

    Args:
        net: the weights.
        shared: the target's embedding.
        num_slots: S.
        max_context_tokens: longest row.
        max_length: most tokens proposed per round.
        find: finds the most likely token.
    """

    def __init__(
        self,
        net: Eagle3Net,
        shared: SharedRows,
        *,
        num_slots: int,
        max_context_tokens: int,
        max_length: int,
        find: MostLikely,
    ) -> None:
        config, like = net.config, shared.embedding_VH
        # A round writes padding and its own steps beyond the known entries.
        length = max_context_tokens + 2 * (max_length + 1)
        self.cache = FlatCache(1, num_slots, length, config.num_key_heads, config.head_size, like=like)
        self._rotation = net.rotation(torch.arange(length, device=like.device), like.dtype)
        self._shared, self._find = shared, find
        self.net = net

    def lay_out(self, net: Eagle3Net) -> Callable[[], None]:
        """See `FeatureRound`."""

        def put_to_use() -> None:
            self.net = net

        return put_to_use

    def read_ahead(self, batch: DraftBatch, row: int, start: int, stop: int, first: int) -> None:
        """See `FeatureRound`."""
        for begin in range(start, stop, _CHUNK_ENTRIES):
            read_entries(self, batch, row, begin, min(begin + _CHUNK_ENTRIES, stop), first)

    def propose(
        self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], firsts: Sequence[int]
    ) -> Proposed:
        """See `FeatureRound`."""
        return propose_by_steps(self, self.net, batch, starts, counts, firsts, self._find)

    @torch.no_grad()
    def enter(self, hidden_BTJ: Tensor) -> Tensor:
        """See `FeatureLayer`."""
        return self.net.enter(hidden_BTJ)

    @torch.no_grad()
    def head(self, feature_BH: Tensor) -> Tensor:
        """See `FeatureLayer`."""
        return self.net.head(feature_BH)

    @torch.no_grad()
    def read(
        self, tokens_BT: Tensor, hidden_BTH: Tensor, starts_B: Tensor, firsts_B: Tensor, first_row: int = 0
    ) -> Tensor:
        """See `FeatureLayer`."""
        device, (num_rows, num_new) = starts_B.device, tokens_BT.shape
        window, cached_SLYD = self.net.config.window_tokens, self.cache.by_position[0]
        rows = slice(first_row, first_row + num_rows)
        rows_B1 = torch.arange(first_row, first_row + num_rows, device=device)[:, None]
        entries_BT = starts_B[:, None] + torch.arange(num_new, device=device)
        embedding_BTH = F.embedding(tokens_BT, self.net.embedding_VH(self._shared))
        cos_LD, sin_LD = self._rotation
        inputs = self.net.attention_inputs(embedding_BTH, hidden_BTH, cos_LD[entries_BT], sin_LD[entries_BT])
        cached_SLYD[rows_B1, entries_BT] = torch.cat((inputs.key_BNTD, inputs.value_BNTD), dim=1).transpose(1, 2)
        starts = starts_B.tolist()
        low, high = max(min(starts) - window + 1, 0), max(starts) + num_new
        keys_BMWD, values_BMWD = cached_SLYD[rows, low:high].transpose(1, 2).chunk(2, dim=1)
        seen_W, query_BT1 = torch.arange(low, high, device=device), entries_BT[:, :, None]
        mask_BTW = (seen_W <= query_BT1) & (seen_W > query_BT1 - window) & (seen_W >= firsts_B[:, None, None])
        attended_BNTD = F.scaled_dot_product_attention(
            inputs.query_BNTD, keys_BMWD, values_BMWD, attn_mask=mask_BTW[:, None], enable_gqa=True
        )
        return self.net.feature(inputs.residual_BTH, attended_BNTD.transpose(1, 2).flatten(2))
