"""Attention of a fused model over its slot cache: the interface, and torch's implementation for any device.

Shapes: B rows, Q new positions, L cached positions read, N query heads, M key/value heads, G = N / M query heads that
share one key head, P = Q * G query rows of a key head, X = N + 2M, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.rotary import rotate
from osd.kernels.reference.window import PassWindow


class Attention(Protocol):
    """The attention of one pass: rotary embedding, writing keys and values to the cache, and attending to it."""

    def __call__(self, layer: int, heads: Tensor) -> Tensor:
        """A layer's projected queries, keys and values `[B * Q, X * D]` to the attention's result `[B * Q, N * D]`."""
        ...


def look_back(window: PassWindow, reach: int | None) -> Tensor:
    """The causal mask `[B, Q, L]`: True at a query's own and earlier positions, at most `reach` of them."""
    queries_BQ1 = window.positions_BQ[:, :, None]
    keys_L = torch.arange(window.num_seen, device=window.device)
    mask_BQL = keys_L <= queries_BQ1
    return mask_BQL if reach is None else mask_BQL & (keys_L > queries_BQ1 - reach)


def _hides(window: PassWindow, reach: int | None) -> bool:
    """Whether any position is masked for any query, as far as the host knows."""
    if window.starts is None:
        return True
    is_level = min(window.starts) == max(window.starts)
    return window.num_new > 1 or not is_level or (reach is not None and window.num_seen > reach)


class SdpaAttention:
    """Torch's scaled dot-product attention; layers of the same reach share one mask per pass.

    Args:
        cache: the KV cache.
        window: the entries that the pass writes and reads.
        cos_LD: cosines by position.
        sin_LD: signed sines by position.
        num_heads: N.
        num_key_heads: M.
        scale: of the scores.
        reaches: how many positions each layer's attention spans, the query's own included; None: all.
    """

    def __init__(
        self,
        cache: FlatCache,
        window: PassWindow,
        cos_LD: Tensor,
        sin_LD: Tensor,
        *,
        num_heads: int,
        num_key_heads: int,
        scale: float,
        reaches: Sequence[int | None],
    ) -> None:
        self._shape = window.num_rows, window.num_new
        self._num_heads, self._num_key_heads, self._scale = num_heads, num_key_heads, scale
        self._layers = list(cache.at(window))
        # Padding may lie beyond the model's positions.
        known_BQ = window.positions_BQ.clamp(max=len(cos_LD) - 1)
        self._turn_BQXD = self._rotation(cos_LD[known_BQ], sin_LD[known_BQ])
        biases = {
            reach: self._additive(look_back(window, reach), cos_LD.dtype)
            for reach in set(reaches)
            if _hides(window, reach)
        }
        self._biases = [biases.get(reach) for reach in reaches]

    def __call__(self, layer: int, heads: Tensor) -> Tensor:
        """See `Attention`."""
        num_rows, num_new = self._shape
        cached = self._layers[layer]
        heads_BQXD = rotate(heads.view(num_rows, num_new, -1, self._turn_BQXD[0].shape[-1]), *self._turn_BQXD)
        cached.write(heads_BQXD[:, :, self._num_heads :])
        # Query heads that share a key head become further query rows of it, so that no key is repeated.
        query_BQMGD = heads_BQXD[:, :, : self._num_heads].view(
            num_rows, num_new, self._num_key_heads, -1, heads_BQXD.shape[-1]
        )
        attended_BMPD = F.scaled_dot_product_attention(
            query_BQMGD.transpose(1, 2).flatten(2, 3),
            cached.keys_BMLD,
            cached.values_BMLD,
            attn_mask=self._biases[layer],
            scale=self._scale,
        )
        attended_BMQGD = attended_BMPD.view(num_rows, self._num_key_heads, num_new, -1, attended_BMPD.shape[-1])
        return attended_BMQGD.transpose(1, 2).reshape(num_rows * num_new, -1)

    def _rotation(self, cos_BQD: Tensor, sin_BQD: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines for every head, `[B, Q, X, D]`; for values the identity rotation."""
        cos_BQ1D, sin_BQ1D = cos_BQD[:, :, None], sin_BQD[:, :, None]
        num_turned = self._num_heads + self._num_key_heads
        still = cos_BQ1D.new_ones((*cos_BQ1D.shape[:2], self._num_key_heads, cos_BQ1D.shape[-1]))
        cos_BQXD = torch.cat((cos_BQ1D.expand(-1, -1, num_turned, -1), still), dim=2)
        return cos_BQXD, torch.cat((sin_BQ1D.expand(-1, -1, num_turned, -1), torch.zeros_like(still)), dim=2)

    def _additive(self, mask_BQL: Tensor, dtype: torch.dtype) -> Tensor:
        """The mask as 0 and -inf by query row, `[B, 1, P, L]`; made once per pass, not per layer."""
        bias_BQL = torch.zeros(mask_BQL.shape, dtype=dtype, device=mask_BQL.device)
        bias_BQL.masked_fill_(~mask_BQL, -torch.inf)
        return bias_BQL.repeat_interleave(self._num_heads // self._num_key_heads, dim=1)[:, None]
