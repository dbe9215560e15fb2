"""The `feature` drafter's layer by a GPU's kernels, with its weights as codes of eight bits where rows are few.

It only guesses, so its weights may be rounded: half as many bytes are read for each proposed token, and what it says it
drew from is the distribution of the rounded weights.

Shapes: B rows, T entries, H hidden size, R reduced vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from osd.drafters.feature_net import FeatureNet
from osd.kernels.gpu.attention import PiecewiseAttention
from osd.kernels.gpu.layers import project, read_layers
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.projections import ByteCodes, DenseProjection
from osd.kernels.reference.row_ops import Norm
from osd.kernels.reference.slot_cache import PassWindow
from osd.machine.transfer import used_here
from osd.models.shared_rows import SharedRows

_MATRICES = ("qkv", "attention_out", "gate_up", "down")


class KernelFeature:
    """What `FeatureChain` computes with torch's operations.

    Args:
        net: the layer; its memory is read, not a copy.
        shared: the target's embedding.
        head_rows: the head's rows, and their bias, for the net's vocabulary.
        cache: the drafter's, of one layer.
        rotation: cosines and signed sines by entry.
    """

    def __init__(
        self,
        net: FeatureNet,
        shared: SharedRows,
        head_rows: tuple[Tensor, Tensor | None],
        cache: FlatCache,
        rotation: tuple[Tensor, Tensor],
    ) -> None:
        self._config, self._shared, self._cache, self._rotation = net.config, shared, cache, rotation
        self._fuse = _coded(net.fuse.weight)
        self._head = _coded(*head_rows)
        self.dense = {name: _coded(getattr(net, name).weight) for name in _MATRICES}
        self._joined_norms = _norm(net.embedding_norm), _norm(net.hidden_norm)
        self.attention_norm, self.mlp_norm = _norm(net.attention_norm), _norm(net.mlp_norm)
        self._feature_norm = _norm(net.feature_norm)

    def __call__(self, tokens_BT: Tensor, hidden_BTH: Tensor, starts_B: Tensor, firsts_B: Tensor) -> Tensor:
        """Write entries from `starts_B` on, attend within the window, and return features `[B, T, H]`."""
        from osd.kernels.gpu.rows import joined

        config = self._config
        window = PassWindow(starts_B.device)
        window.set_on_device(starts_B, tokens_BT.shape[1], self._cache.all.shape[3])
        attend = PiecewiseAttention(
            self._cache,
            window,
            *self._rotation,
            num_heads=config.num_heads,
            num_key_heads=config.num_heads,
            scale=(config.hidden_size // config.num_heads) ** -0.5,
            reaches=[config.window_tokens],
            firsts_B=firsts_B,
        )
        joined_RJ = joined(tokens_BT.flatten(), self._shared.embedding_VH, hidden_BTH.flatten(0, 1), self._joined_norms)
        rows_RH = project(self._fuse, joined_RJ)
        return read_layers([self], rows_RH, attend, self._feature_norm).view_as(hidden_BTH)

    def head(self, feature_BH: Tensor) -> Tensor:
        """Logits `[B, R]`."""
        return project(self._head, feature_BH)

    def norm_heads(self, heads: Tensor) -> Tensor:
        """There is no such norm."""
        return heads

    def copy_codes(self, other: KernelFeature) -> None:
        """Take another's codes, in the same memory."""
        for place, new in zip(self._codes(), other._codes(), strict=True):
            place.codes_OI.copy_(used_here(new.codes_OI))
            place.steps_O.copy_(used_here(new.steps_O))

    def _codes(self) -> Iterator[ByteCodes]:
        for projection in (self._fuse, self._head, *self.dense.values()):
            assert projection.codes is not None
            yield projection.codes


def _coded(weight_OI: Tensor, bias_O: Tensor | None = None) -> DenseProjection:
    return DenseProjection(weight_OI, bias_O, ByteCodes.of(weight_OI))


def _norm(module: nn.RMSNorm) -> Norm:
    assert module.eps is not None
    return Norm(module.weight, module.eps)
