"""A `feature` drafter's whole round as one function of tensors: what a GPU captures once and then replays.

It computes what `FeatureDrafter` computes step by step, and differs in how it finds its places: every row gathers its
own window of entries, so that shapes depend neither on how long a row is nor on what the host knows.

Shapes: S slots, B rows, T new entries (padded), W entries of a window with the new ones, K proposed, H hidden size,
N heads, D head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.drafters.choose import ChainChoice
from osd.drafters.feature_kernels import KernelFeature
from osd.drafters.feature_net import FeatureNet
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.projections import Projection
from osd.models.shared_rows import SharedRows


class FeatureChain:
    """Reads the entries that are new, then feeds itself its own features.

    Args:
        net: the layer.
        shared: the target's embedding.
        head: the head's rows for the net's vocabulary; always the same tensor.
        cache: the drafter's, of one layer.
        rotation: cosines and signed sines by entry.
    """

    def __init__(
        self,
        net: FeatureNet,
        shared: SharedRows,
        head: Projection,
        cache: FlatCache,
        rotation: tuple[Tensor, Tensor],
    ) -> None:
        self._net, self._shared, self._head = net, shared, head
        self._cached_SLYD = cache.by_position[0]
        self._cos_LD, self._sin_LD = rotation

    def __call__(
        self,
        tokens_SL: Tensor,
        hidden_SLH: Tensor,
        starts_B: Tensor,
        counts_B: Tensor,
        firsts_B: Tensor,
        choice: ChainChoice,
        num_new: int,
        kernels: KernelFeature | None = None,
    ) -> None:
        """Let `choice` take every token of the chain.

        Args:
            tokens_SL: known tokens.
            hidden_SLH: the target's hidden states.
            starts_B: each row's first new entry.
            counts_B: how many are new, from 1 to `num_new`.
            firsts_B: the first entry that may be looked at.
            choice: chooses each step's tokens.
            num_new: T.
            kernels: do the layer's work instead of torch's operations.
        """
        read, head = (self._pass, self._head) if kernels is None else (kernels, kernels.head)
        device = starts_B.device
        rows_B1 = torch.arange(len(starts_B), device=device)[:, None]
        entries_BT = starts_B[:, None] + torch.arange(num_new, device=device)
        known_BT = entries_BT.clamp(max=tokens_SL.shape[1] - 2)
        features_BTH = read(tokens_SL[rows_B1, known_BT + 1], hidden_SLH[rows_B1, known_BT], starts_B, firsts_B)
        feature_BH = features_BTH[rows_B1[:, 0], counts_B - 1]
        ends_B = starts_B + counts_B
        for step in range(choice.num_steps):
            token_B = choice.take(head(feature_BH))
            if step + 1 < choice.num_steps:
                feature_BH = read(token_B[:, None], feature_BH[:, None], ends_B + step, firsts_B)[:, 0]

    def _pass(self, tokens_BT: Tensor, hidden_BTH: Tensor, starts_B: Tensor, firsts_B: Tensor) -> Tensor:
        """Write entries from `starts_B` on, attend within the window, and return features `[B, T, H]`."""
        device, (num_rows, num_new) = starts_B.device, tokens_BT.shape
        window = self._net.config.window_tokens
        rows_B1 = torch.arange(num_rows, device=device)[:, None]
        entries_BT = starts_B[:, None] + torch.arange(num_new, device=device)
        inputs = self._net.attention_inputs(
            F.embedding(tokens_BT, self._shared.embedding_VH),
            hidden_BTH,
            self._cos_LD[entries_BT],
            self._sin_LD[entries_BT],
        )
        heads_BTYD = torch.cat((inputs.key_BNTD, inputs.value_BNTD), dim=1).transpose(1, 2)
        self._cached_SLYD[rows_B1, entries_BT] = heads_BTYD
        seen_BW = starts_B[:, None] + torch.arange(1 - window, num_new, device=device)
        keys_BNWD, values_BNWD = self._cached_SLYD[rows_B1, seen_BW.clamp(min=0)].transpose(1, 2).chunk(2, dim=1)
        seen_B1W, query_BT1 = seen_BW[:, None], entries_BT[:, :, None]
        mask_BTW = (seen_B1W <= query_BT1) & (seen_B1W > query_BT1 - window) & (seen_B1W >= firsts_B[:, None, None])
        attended_BNTD = F.scaled_dot_product_attention(
            inputs.query_BNTD, keys_BNWD, values_BNWD, attn_mask=mask_BTW[:, None]
        )
        return self._net.feature(inputs.residual_BTH, attended_BNTD.transpose(1, 2).flatten(2))
