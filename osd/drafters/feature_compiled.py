"""The `feature` drafter by the compiled loops of a CPU.

Shapes: B rows, T entries, K proposed, H hidden size, D head size, L entries of the cache, R reduced vocabulary,
V the target's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from osd.drafters.choose import draw_uniforms, is_sampled
from osd.drafters.feature_net import FeatureNet
from osd.kernels.cpu.arguments import NONE, Array, Chain, Choice, Known, Shapes
from osd.kernels.cpu.kernels import kernels
from osd.kernels.cpu.layers import CompiledLayers, LayerWeights, TiledProjection, in_layout
from osd.kernels.cpu.products.codes import BLOCK
from osd.kernels.cpu.tiled_cache import TiledCache
from osd.kernels.cpu.verdicts.sampled_rows import shapes_of
from osd.kernels.reference.slot_cache import PassWindow
from osd.machine.arrays import array, tensor
from osd.records.proposal import DraftBatch
from osd.verify.shaping import Shape

_BITS = 8
_NO_FLOATS: Array = np.empty(0, np.float32)
_ALL_GREEDY = np.empty(0, np.bool_), _NO_FLOATS.reshape(0, 0), _NO_FLOATS.reshape(0, 0, 0)
_NO_SHAPES = Shapes(_NO_FLOATS, _NO_FLOATS, NONE, _NO_FLOATS)


class CompiledFeature:
    """Weights are copied: after every change of them, a new one. In bfloat16 they are rounded to codes of eight bits.

    A step reads all of them, in a cache that the target's pass has just emptied: half as many bytes are half the time,
    and what the drafter says is only a guess (its distribution is that of the rounded weights).

    Args:
        net: the layer.
        embedding_VH: the target's.
        head_rows: the head's rows and biases for the net's vocabulary.
        cache: the drafter's, of one layer.
        cos_LD: cosines by entry.
        sin_LD: signed sines by entry.
    """

    def __init__(
        self,
        net: FeatureNet,
        embedding_VH: Tensor,
        head_rows: tuple[Tensor, Tensor | None],
        cache: TiledCache,
        cos_LD: Tensor,
        sin_LD: Tensor,
    ) -> None:
        found = kernels()
        assert found is not None
        assert net.feature_norm.eps is not None
        is_bfloat16 = embedding_VH.dtype == torch.bfloat16
        self._kernels, self._eps = found, net.feature_norm.eps
        self._input_norms_2H = torch.stack((net.embedding_norm.weight, net.hidden_norm.weight)).float().numpy()
        matrices = (net.fuse, net.qkv, net.attention_out, net.gate_up, net.down)
        can_code = is_bfloat16 and all(one.weight.shape[1] % BLOCK == 0 for one in matrices)
        bits = _BITS if can_code else 0
        self._fuse = TiledProjection(net.fuse.weight, bits=bits)
        self.head = TiledProjection(*head_rows, bits=bits)
        self._array = lru_cache(maxsize=2)(array)
        """Of what is known, the same tensors in every round."""
        self._probs_NV = np.empty((0, len(embedding_VH)), np.float32)
        self.can_chain = is_bfloat16
        """Whether `chain` takes the place of step after step."""
        self._chain = Chain(
            embedding_VH=array(embedding_VH),
            input_norms_2H=self._input_norms_2H,
            fuse=self._fuse.tiles.data_ptr(),
            head=self.head.tiles.data_ptr(),
            vocab_ids_R=net.vocab_ids_R.numpy(),
        )
        layer = LayerWeights(
            attention_norm_H=net.attention_norm.weight,
            qkv=in_layout(net.qkv.weight, None, bits=bits),
            query_norm_D=None,
            key_norm_D=None,
            attention_out=in_layout(net.attention_out.weight, None, bits=bits),
            mlp_norm_H=net.mlp_norm.weight,
            gate_up=in_layout(net.gate_up.weight, None, 2, bits=bits),
            down=in_layout(net.down.weight, None, bits=bits),
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
            bits=bits,
        )

    def __call__(self, embedding_BTH: Tensor, hidden_BTH: Tensor, window: PassWindow, firsts: Sequence[int]) -> Tensor:
        """Features `[B, T, H]`; see `FeatureDrafter`."""
        size = hidden_BTH.shape[-1]
        both_RF = hidden_BTH.new_empty((hidden_BTH.numel() // size, 2 * size))
        halves = (both_RF[:, :size], both_RF[:, size:])
        for x, weight_H, half_RH in zip((embedding_BTH, hidden_BTH), self._input_norms_2H, halves, strict=True):
            self._kernels.norm(x.reshape(-1, size), weight_H, self._eps, half_RH)
        features_RH = self._layer(array(self._fuse(both_RF)), window, firsts)
        return tensor(features_RH).view(hidden_BTH.shape)

    def chain(
        self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], firsts: Sequence[int]
    ) -> tuple[Array, Array | None]:
        """A round in one call: reads what is new, then feeds itself its own features.

        Args:
            batch: the rows.
            starts: by row, the first new entry.
            counts: how many are new, at least one.
            firsts: the first entry that may be looked at.

        Returns:
            (the target's ids of the proposed tokens `[B, K]`, the distributions they were drawn from `[B, K, V]`, which
            the next round writes over; a greedy row's are anything).
        """
        starts_B, counts_B, firsts_B = np.array((starts, counts, firsts))
        slots_B = self._layer.slots[: len(starts)]
        tokens, hidden, num_steps = self._array(batch.tokens_SL), self._array(batch.hidden_SLH), max(batch.lengths)
        known = Known(tokens, hidden, slots_B, starts_B, counts_B, firsts_B, max(counts))
        ids_KB = np.empty((num_steps, len(starts)), np.int64)
        choice, shapes, probs_BKV = Choice(ids_KB, *_ALL_GREEDY), _NO_SHAPES, None
        if is_sampled(batch):
            probs_BKV = self._probs_of(len(starts), num_steps)
            shapes = shapes_of([Shape.of(params) for params in batch.params])
            greedy_B = np.array([params.is_greedy for params in batch.params])
            uniform_BK = np.array(draw_uniforms(batch, num_steps), np.float32)
            choice = Choice(ids_KB, greedy_B, uniform_BK, probs_BKV)
        self._kernels.run_chain(self._layer.stack, self._chain, known, choice, shapes)
        return np.ascontiguousarray(ids_KB.T), probs_BKV

    def _probs_of(self, num_rows: int, num_steps: int) -> Array:
        """Room for a round's distributions. Whoever is sampled writes all of the drafter's tokens, and nobody others:
        zeros are filled in once, not in every round.
        """
        num_vectors, vocab_tokens = num_rows * num_steps, len(self._chain.embedding_VH)
        if len(self._probs_NV) < num_vectors:
            self._probs_NV = np.zeros((num_vectors, vocab_tokens), np.float32)
        return self._probs_NV[:num_vectors].reshape(num_rows, num_steps, vocab_tokens)
