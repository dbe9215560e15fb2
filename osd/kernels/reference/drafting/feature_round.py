"""The reference of a `feature` drafter's round: a chain of one-layer steps from the target's last hidden state.

A round first reads the entries whose hidden states the target has computed since the last round, then feeds the drafter
its own features. Every row gathers its own window of entries, so no shape depends on a row's length, and a GPU can
capture the same functions (`osd.kernels.gpu.feature_round`).

Shapes: S slots, B rows, T new entries (padded), W entries of a window including the new ones, H hidden size, N heads,
D head size, R reduced vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.kernels.backend import Proposed
from osd.kernels.reference.drafting.chain_choice import ChainChoice, Draws
from osd.kernels.reference.drafting.eagle3_net import Eagle3Net
from osd.kernels.reference.drafting.feature_net import FeatureConfig, FeatureNet, head_rows
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.logits import MostLikely
from osd.kernels.reference.projections import DenseProjection
from osd.machine.transfer import upload
from osd.records.proposal import DraftBatch
from osd.records.shared_rows import SharedRows


class FeatureLayer(Protocol):
    """A drafter's network over a cache, one pass per call."""

    def enter(self, hidden_BTH: Tensor) -> Tensor:
        """What `read` takes for entries whose hidden states the target has computed."""
        ...

    def read(
        self, tokens_BT: Tensor, hidden_BTH: Tensor, starts_B: Tensor, firsts_B: Tensor, first_row: int = 0
    ) -> Tensor:
        """Write entries from `starts_B` on, attend within the window, and return features `[B, T, H]`.

        Args:
            tokens_BT: the token after each entry.
            hidden_BTH: the hidden state, or feature, at each entry.
            starts_B: each row's first new entry.
            firsts_B: each row's first entry that may be attended to.
            first_row: the rows are `first_row .. first_row + B - 1`.
        """
        ...

    def head(self, feature_BH: Tensor) -> Tensor:
        """Logits `[B, R]`."""
        ...


def cache_entries(config: FeatureConfig, max_context_tokens: int, max_length: int) -> int:
    """Entries allocated per row: a round writes padding and its own steps beyond the known ones."""
    return max_context_tokens + config.window_tokens + 2 * (max_length + 1)


class TorchFeatureRound:
    """See `osd.kernels.backend.FeatureRound`.

    Args:
        net: the weights.
        shared: the target's embedding and head.
        num_slots: S.
        length: entries of a row.
        find: finds the most likely token.
    """

    def __init__(self, net: FeatureNet, shared: SharedRows, *, num_slots: int, length: int, find: MostLikely) -> None:
        config, like = net.config, shared.embedding_VH
        self.cache = FlatCache(
            1, num_slots, length, config.num_heads, config.hidden_size // config.num_heads, like=like
        )
        self.rotation = net.rotation(torch.arange(length, device=like.device), like.dtype)
        self._shared, self._find = shared, find
        self._use(net)

    def _use(self, net: FeatureNet) -> None:
        self.net, self.head_rows = net, head_rows(self._shared, net.vocab_ids_R)
        self.head = DenseProjection(*self.head_rows)

    def lay_out(self, net: FeatureNet) -> Callable[[], None]:
        """See `FeatureRound`."""
        return lambda: self._use(net)

    def read_ahead(self, batch: DraftBatch, row: int, start: int, stop: int, first: int) -> None:
        """See `FeatureRound`."""
        read_entries(self, batch, row, start, stop, first)

    def propose(
        self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], firsts: Sequence[int]
    ) -> Proposed:
        """See `FeatureRound`."""
        return propose_by_steps(self, self.net, batch, starts, counts, firsts, self._find)

    def enter(self, hidden_BTH: Tensor) -> Tensor:
        """See `FeatureLayer`: the last hidden states themselves."""
        return hidden_BTH

    @torch.no_grad()
    def read(
        self, tokens_BT: Tensor, hidden_BTH: Tensor, starts_B: Tensor, firsts_B: Tensor, first_row: int = 0
    ) -> Tensor:
        """See `FeatureLayer`."""
        device, (num_rows, num_new) = starts_B.device, tokens_BT.shape
        window, cached_SLYD = self.net.config.window_tokens, self.cache.by_position[0]
        rows_B1 = torch.arange(first_row, first_row + num_rows, device=device)[:, None]
        entries_BT = starts_B[:, None] + torch.arange(num_new, device=device)
        embedding_BTH = F.embedding(tokens_BT, self._shared.embedding_VH)
        cos_LD, sin_LD = self.rotation
        inputs = self.net.attention_inputs(embedding_BTH, hidden_BTH, cos_LD[entries_BT], sin_LD[entries_BT])
        cached_SLYD[rows_B1, entries_BT] = torch.cat((inputs.key_BNTD, inputs.value_BNTD), dim=1).transpose(1, 2)
        seen_BW = starts_B[:, None] + torch.arange(1 - window, num_new, device=device)
        keys_BNWD, values_BNWD = cached_SLYD[rows_B1, seen_BW.clamp(min=0)].transpose(1, 2).chunk(2, dim=1)
        seen_B1W, query_BT1 = seen_BW[:, None], entries_BT[:, :, None]
        mask_BTW = (seen_B1W <= query_BT1) & (seen_B1W > query_BT1 - window) & (seen_B1W >= firsts_B[:, None, None])
        attended_BNTD = F.scaled_dot_product_attention(
            inputs.query_BNTD, keys_BNWD, values_BNWD, attn_mask=mask_BTW[:, None]
        )
        return self.net.feature(inputs.residual_BTH, attended_BNTD.transpose(1, 2).flatten(2))


def read_entries(layer: FeatureLayer, batch: DraftBatch, row: int, start: int, stop: int, first: int) -> None:
    """See `FeatureRound.read_ahead`."""
    starts_B, firsts_B = upload([[start], [first]], batch.tokens_SL.device)
    tokens_1T, hidden_1TH = batch.tokens_SL[row, None, start + 1 : stop + 1], batch.hidden_SLH[row, None, start:stop]
    layer.read(tokens_1T, layer.enter(hidden_1TH), starts_B, firsts_B, row)


def propose_by_steps(
    layer: FeatureLayer,
    net: FeatureNet | Eagle3Net,
    batch: DraftBatch,
    starts: Sequence[int],
    counts: Sequence[int],
    firsts: Sequence[int],
    find: MostLikely,
) -> Proposed:
    """A round as a sequence of torch operations.

    Args:
        layer: runs the passes.
        net: the network, for its vocabulary.
        batch: see `FeatureRound.propose`.
        starts: see `FeatureRound.propose`.
        counts: see `FeatureRound.propose`.
        firsts: see `FeatureRound.propose`.
        find: finds the most likely token.
    """
    config = net.config
    draws = Draws.of(batch, config.vocab_tokens)
    choice = ChainChoice(max(batch.lengths), draws, config.target_vocab_tokens, net.vocab_ids_R, find=find)
    places_3B = upload([starts, counts, firsts], batch.tokens_SL.device)
    run_chain(layer, batch.tokens_SL, batch.hidden_SLH, places_3B, choice, max(counts))
    return Proposed(choice.token_ids_BK, choice.draft_probs_BKV)


@torch.no_grad()
def run_chain(
    layer: FeatureLayer, tokens_SL: Tensor, hidden_SLH: Tensor, places_3B: Tensor, choice: ChainChoice, num_new: int
) -> None:
    """Let `choice` choose all tokens of a chain, as a function of tensors only.

    Args:
        layer: runs the passes.
        tokens_SL: known tokens.
        hidden_SLH: the target's hidden states.
        places_3B: per row: the first new entry, the number of new entries, the first entry that may be attended to.
        choice: chooses each step's tokens.
        num_new: T, at least the largest number of new entries.
    """
    starts_B, counts_B, firsts_B = places_3B
    device = starts_B.device
    rows_B1 = torch.arange(len(starts_B), device=device)[:, None]
    entries_BT = starts_B[:, None] + torch.arange(num_new, device=device)
    known_BT = entries_BT.clamp(max=tokens_SL.shape[1] - 2)
    hidden_BTH = layer.enter(hidden_SLH[rows_B1, known_BT])
    features_BTH = layer.read(tokens_SL[rows_B1, known_BT + 1], hidden_BTH, starts_B, firsts_B)
    feature_BH = features_BTH[rows_B1[:, 0], counts_B - 1]
    ends_B = starts_B + counts_B
    for step in range(choice.num_steps):
        token_B = choice.take(layer.head(feature_BH))
        if step + 1 < choice.num_steps:
            feature_BH = layer.read(token_B[:, None], feature_BH[:, None], ends_B + step, firsts_B)[:, 0]
