"""Attention of few new positions over the slot cache, by Triton kernels; the reference is `SdpaAttention`.

Shapes: Q new positions, N query heads, M key/value heads, X = N + 2M, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.window import PassWindow

_MOST_QUERY_ROWS = 128
"""Most query rows per key head and pass; a tile of more does not fit a multiprocessor."""


def fits_kernels(num_new: int, num_heads: int, num_key_heads: int) -> bool:
    """Whether a pass has few enough new positions for the kernels."""
    return num_new * (num_heads // num_key_heads) <= _MOST_QUERY_ROWS


class PiecewiseAttention:
    """Attention with the interface of `SdpaAttention`, which reads each row of the cache only as far as it is filled.

    Args:
        firsts_B: each row's first position that may be attended to; None: 0.
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
        firsts_B: Tensor | None = None,
    ) -> None:
        rows = slice(window.first_row, window.first_row + window.num_rows)
        self._shape = window.num_rows, window.num_new
        self._starts_B = window.starts_B
        seen = cache.all[:, rows, :, : window.num_seen]
        self._keys, self._values = seen[:, :, :num_key_heads].unbind(0), seen[:, :, num_key_heads:].unbind(0)
        self._rotation = cos_LD, sin_LD
        self._num_heads, self._scale, self._reaches, self._firsts_B = num_heads, scale, reaches, firsts_B

    def __call__(self, layer: int, heads: Tensor) -> Tensor:
        """See `Attention`."""
        # Imported here, since Triton may not be installed.
        from osd.kernels.gpu.pieces import look_in_pieces

        return look_in_pieces(
            heads.view(*self._shape, -1, self._rotation[0].shape[-1]),
            self._keys[layer],
            self._values[layer],
            self._starts_B,
            *self._rotation,
            num_heads=self._num_heads,
            scale=self._scale,
            reach=self._reaches[layer],
            firsts_B=self._firsts_B,
        )
