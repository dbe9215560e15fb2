"""The `feature` drafter's rounds by compiled loops.

They compute the same as `osd.kernels.reference.drafting.feature_round`.

In bfloat16 a whole round is one call (`osd.kernels.cpu.chain`), with weights quantised to eight bits: each step reads
all weights from memory, since the target's pass has evicted them from the processor's caches, so half of the bytes take
half of the time. Quantising changes only the drafter's distribution, which is recorded as such. In float32 the layer is
compiled, and a round calls it step by step.

Shapes: B rows, T entries, K proposed, H hidden size, D head size, L entries of the cache, R reduced vocabulary,
V the target's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from osd.kernels.backend import Proposed
from osd.kernels.cpu.arguments import NONE, Array, Chain, Choice, Known, Shapes
from osd.kernels.cpu.arrays import array, tensor
from osd.kernels.cpu.backend.layers import CompiledLayers, LayerWeights, TiledProjection, in_layout
from osd.kernels.cpu.backend.logits import shapes_of
from osd.kernels.cpu.kernels import Kernels
from osd.kernels.cpu.products.codes import BLOCK
from osd.kernels.cpu.tiled_cache import TiledCache
from osd.kernels.reference.drafting.chain_choice import draw_uniforms, is_sampled
from osd.kernels.reference.drafting.feature_net import FeatureNet, head_rows
from osd.kernels.reference.drafting.feature_round import propose_by_steps, read_entries
from osd.kernels.reference.logits import most_likely
from osd.kernels.reference.window import PassWindow
from osd.records.proposal import DraftBatch
from osd.records.shared_rows import SharedRows
from osd.verify.shaping import RowShaping

_BITS = 8
_NO_FLOATS: Array = np.empty(0, np.float32)
_ALL_GREEDY = np.empty(0, np.bool_), _NO_FLOATS.reshape(0, 0), _NO_FLOATS.reshape(0, 0, 0)
_NO_SHAPES = Shapes(_NO_FLOATS, _NO_FLOATS, NONE, _NO_FLOATS)


class _Weights(NamedTuple):
    """A network's weights as tiles."""

    net: FeatureNet
    input_norms_2H: Array
    fuse: TiledProjection
    head: TiledProjection
    layer: CompiledLayers
    chain: Chain


class CpuFeatureRound:
    """See `osd.kernels.backend.FeatureRound`.

    Args:
        kernels: the compiled loops.
        net: the weights.
        shared: the target's embedding and head.
        num_slots: S.
        length: L.
    """

    def __init__(self, kernels: Kernels, net: FeatureNet, shared: SharedRows, *, num_slots: int, length: int) -> None:
        config, like = net.config, shared.embedding_VH
        self._kernels, self._shared = kernels, shared
        self.cache = TiledCache(
            1, num_slots, length, config.num_heads, config.hidden_size // config.num_heads, like=like
        )
        self._rotation = net.rotation(torch.arange(length), like.dtype)
        self._window = PassWindow(like.device)
        self._array = lru_cache(maxsize=2)(array)
        """`array`, cached for the two tensors of a batch, which are the same in every round (see `DraftBatch`)."""
        self.is_one_call = like.dtype == torch.bfloat16
        """Whether a round is one call, or one per step."""
        self._use(self._laid_out(net))

    def _use(self, weights: _Weights) -> None:
        self._weights, self.net = weights, weights.net
        # Another version may have another vocabulary, outside of which the distributions must be zero.
        self._probs_NV = np.empty((0, len(self._shared.embedding_VH)), np.float32)

    def lay_out(self, net: FeatureNet) -> Callable[[], None]:
        """See `FeatureRound`."""
        weights = self._laid_out(net)
        return lambda: self._use(weights)

    def _laid_out(self, net: FeatureNet) -> _Weights:
        """Copies the weights."""
        assert net.feature_norm.eps is not None
        config, embedding_VH = net.config, self._shared.embedding_VH
        input_norms_2H = torch.stack((net.embedding_norm.weight, net.hidden_norm.weight)).float().numpy()
        matrices = (net.fuse, net.qkv, net.attention_out, net.gate_up, net.down)
        can_code = self.is_one_call and all(one.weight.shape[1] % BLOCK == 0 for one in matrices)
        bits = _BITS if can_code else 0
        fuse = TiledProjection(self._kernels, net.fuse.weight, bits=bits)
        head = TiledProjection(self._kernels, *head_rows(self._shared, net.vocab_ids_R), bits=bits)
        weights = LayerWeights(
            attention_norm_H=net.attention_norm.weight,
            qkv=in_layout(net.qkv.weight, None, bits=bits),
            query_norm_D=None,
            key_norm_D=None,
            attention_out=in_layout(net.attention_out.weight, None, bits=bits),
            mlp_norm_H=net.mlp_norm.weight,
            gate_up=in_layout(net.gate_up.weight, None, 2, bits=bits),
            down=in_layout(net.down.weight, None, bits=bits),
        )
        layer = CompiledLayers(
            self._kernels,
            [weights],
            net.feature_norm.weight,
            net.feature_norm.eps,
            self.cache,
            *self._rotation,
            num_heads=config.num_heads,
            gate_size=config.intermediate_size,
            scale=(config.hidden_size // config.num_heads) ** -0.5,
            reaches=[config.window_tokens],
            bits=bits,
        )
        chain = Chain(
            embedding_VH=array(embedding_VH),
            input_norms_2H=input_norms_2H,
            fuse=fuse.tiles.data_ptr(),
            head=head.tiles.data_ptr(),
            vocab_ids_R=net.vocab_ids_R.numpy(),
        )
        return _Weights(net, input_norms_2H, fuse, head, layer, chain)

    def read_ahead(self, batch: DraftBatch, row: int, start: int, stop: int, first: int) -> None:
        """See `FeatureRound`."""
        read_entries(self, batch, row, start, stop, first)

    def propose(
        self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], firsts: Sequence[int]
    ) -> Proposed:
        """See `FeatureRound`. The next round overwrites the distributions; a greedy row's are undefined."""
        if not self.is_one_call:
            return propose_by_steps(self, self.net, batch, starts, counts, firsts, most_likely)
        weights = self._weights
        starts_B, counts_B, firsts_B = np.array((starts, counts, firsts))
        slots_B = weights.layer.slots[: len(starts)]
        tokens, hidden, num_steps = self._array(batch.tokens_SL), self._array(batch.hidden_SLH), max(batch.lengths)
        known = Known(tokens, hidden, slots_B, starts_B, counts_B, firsts_B, max(counts))
        ids_KB = np.empty((num_steps, len(starts)), np.int64)
        choice, shapes, probs_BKV = Choice(ids_KB, *_ALL_GREEDY), _NO_SHAPES, None
        if is_sampled(batch):
            probs_BKV = self._probs_of(len(starts), num_steps)
            shapes = shapes_of([RowShaping.of(params) for params in batch.params])
            greedy_B = np.array([params.is_greedy for params in batch.params])
            uniform_BK = np.array(draw_uniforms(batch, num_steps), np.float32)
            choice = Choice(ids_KB, greedy_B, uniform_BK, probs_BKV)
        self._kernels.run_chain(weights.layer.stack, weights.chain, known, choice, shapes)
        return Proposed(np.ascontiguousarray(ids_KB.T), probs_BKV)

    def enter(self, hidden_BTH: Tensor) -> Tensor:
        """See `osd.kernels.reference.drafting.feature_round.FeatureLayer`: the last hidden states themselves."""
        return hidden_BTH

    def read(
        self, tokens_BT: Tensor, hidden_BTH: Tensor, starts_B: Tensor, firsts_B: Tensor, first_row: int = 0
    ) -> Tensor:
        """See `osd.kernels.reference.drafting.feature_round.FeatureLayer`."""
        weights, size, eps = self._weights, hidden_BTH.shape[-1], self.net.feature_norm.eps
        assert eps is not None
        embedding_BTH = F.embedding(tokens_BT, self._shared.embedding_VH)
        both_RF = hidden_BTH.new_empty((hidden_BTH.numel() // size, 2 * size))
        halves = (both_RF[:, :size], both_RF[:, size:])
        for x, weight_H, half_RH in zip((embedding_BTH, hidden_BTH), weights.input_norms_2H, halves, strict=True):
            self._kernels.norm(x.reshape(-1, size), weight_H, eps, half_RH)
        self._window.set(first_row, starts_B.tolist(), tokens_BT.shape[1])
        features_RH = weights.layer(array(weights.fuse(both_RF)), self._window, firsts_B.tolist())
        return tensor(features_RH).view(hidden_BTH.shape)

    def head(self, feature_BH: Tensor) -> Tensor:
        """See `osd.kernels.reference.drafting.feature_round.FeatureLayer`."""
        return self._weights.head(feature_BH)

    def _probs_of(self, num_rows: int, num_steps: int) -> Array:
        """Memory for a round's distributions. A sampled row writes the probabilities of the drafter's whole vocabulary
        and of no other tokens, so the zeros are written once, not in every round.
        """
        num_vectors, vocab_tokens = num_rows * num_steps, self._probs_NV.shape[1]
        if len(self._probs_NV) < num_vectors:
            self._probs_NV = np.zeros((num_vectors, vocab_tokens), np.float32)
        return self._probs_NV[:num_vectors].reshape(num_rows, num_steps, vocab_tokens)
