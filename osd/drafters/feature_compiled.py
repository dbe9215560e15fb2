"""The `feature` drafter's layer by the compiled loops of a CPU.

Shapes: B rows, T entries, H hidden size, D head size, L entries of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from osd.drafters.feature_net import FeatureNet
from osd.models.compiled.kernels import kernels
from osd.models.compiled.layers import CompiledLayers, LayerWeights, TiledProjection
from osd.models.compiled.tiling import tiled
from osd.models.flat_cache import FlatCache
from osd.models.slot_cache import PassWindow


class CompiledFeature:
    """Weights are copied: after every change of them, a new one.

    Args:
        net: the layer.
        cache: the drafter's, of one layer.
        cos_LD: cosines by entry.
        sin_LD: signed sines by entry.
    """

    def __init__(self, net: FeatureNet, cache: FlatCache, cos_LD: Tensor, sin_LD: Tensor) -> None:
        found = kernels()
        assert found is not None
        assert net.feature_norm.eps is not None
        self._kernels, self._eps = found, net.feature_norm.eps
        self._input_norms = [norm.weight.float().numpy() for norm in (net.embedding_norm, net.hidden_norm)]
        self._fuse = TiledProjection(net.fuse.weight)
        layer = LayerWeights(
            attention_norm_H=net.attention_norm.weight,
            qkv=tiled(net.qkv.weight, None),
            query_norm_D=None,
            key_norm_D=None,
            attention_out=tiled(net.attention_out.weight, None),
            mlp_norm_H=net.mlp_norm.weight,
            gate_up=tiled(net.gate_up.weight, None, 2),
            down=tiled(net.down.weight, None),
        )
        config = net.config
        self._layer = CompiledLayers(
            [layer],
            net.feature_norm.weight,
            self._eps,
            cache,
            cos_LD,
            sin_LD,
            num_heads=config.num_heads,
            gate_size=config.intermediate_size,
            scale=(config.hidden_size // config.num_heads) ** -0.5,
            reaches=[config.window_tokens],
        )

    def __call__(self, embedding_BTH: Tensor, hidden_BTH: Tensor, window: PassWindow, firsts: Sequence[int]) -> Tensor:
        """Features `[B, T, H]`; see `FeatureDrafter`."""
        size = hidden_BTH.shape[-1]
        both_RF = hidden_BTH.new_empty((hidden_BTH.numel() // size, 2 * size))
        halves = (both_RF[:, :size], both_RF[:, size:])
        for x, weight_H, half_RH in zip((embedding_BTH, hidden_BTH), self._input_norms, halves, strict=True):
            self._kernels.norm(x.reshape(-1, size), weight_H, self._eps, half_RH)
        return self._layer(self._fuse(both_RF), window, firsts).view(hidden_BTH.shape)
