"""The `feature` drafter's rounds on a GPU: captured once per shape, then replayed.

What is captured computes the same as `osd.kernels.reference.drafting.feature_round`, by torch's operations or by Triton
kernels, whichever is measured to be faster.

Shapes: B rows, T entries, K proposed, H hidden size, R reduced vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from osd.kernels.backend import Proposed
from osd.kernels.gpu.attention import PiecewiseAttention
from osd.kernels.gpu.graphs import Capture, GraphPool, Work, bucket
from osd.kernels.gpu.layers import project, read_layers
from osd.kernels.reference.drafting.chain_choice import ChainChoice, Draws
from osd.kernels.reference.drafting.feature_net import FeatureNet, head_rows
from osd.kernels.reference.drafting.feature_round import FeatureLayer, TorchFeatureRound, run_chain
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.logits import MostLikely
from osd.kernels.reference.projections import ByteCodes, DenseProjection
from osd.kernels.reference.row_ops import Norm
from osd.kernels.reference.window import PassWindow
from osd.machine.transfer import pinned, used_by_stream
from osd.records.proposal import DraftBatch
from osd.records.shared_rows import SharedRows


class GpuFeatureRound:
    """See `osd.kernels.backend.FeatureRound`.

    Args:
        net: the network. Captured work reads its memory, so new weights are copied into it.
        shared: the target's embedding and head.
        num_slots: rows.
        length: entries of a row.
        max_length: most tokens proposed per round.
        find: finds the most likely token.
        capture: captures a round.
        has_kernels: whether Triton kernels run on the device.
    """

    def __init__(
        self,
        net: FeatureNet,
        shared: SharedRows,
        *,
        num_slots: int,
        length: int,
        max_length: int,
        find: MostLikely,
        capture: Capture,
        has_kernels: bool,
    ) -> None:
        self.net = net
        self.torch = TorchFeatureRound(net, shared, num_slots=num_slots, length=length, find=find)
        self.cache = self.torch.cache
        self.kernels = self._coded(net, shared, self.torch.head_rows) if has_kernels else None
        self._shared, self._find = shared, find
        self._num_slots, self._length, self._num_new = num_slots, length, max_length + 1
        self._graphs = GraphPool(capture)

    def _coded(self, net: FeatureNet, shared: SharedRows, rows: tuple[Tensor, Tensor | None]) -> KernelFeature:
        return KernelFeature(net, shared, rows, self.torch.cache, self.torch.rotation)

    def lay_out(self, net: FeatureNet) -> Callable[[], None]:
        """See `FeatureRound`."""
        rows = head_rows(self._shared, net.vocab_ids_R)
        kernels = None if self.kernels is None else self._coded(net, self._shared, rows)

        def copy() -> None:
            self.net.load_state_dict({name: used_by_stream(tensor) for name, tensor in net.state_dict().items()})
            for place, new in zip(self.torch.head_rows, rows, strict=True):
                if place is not None and new is not None:
                    place.copy_(used_by_stream(new))
            if self.kernels is not None and kernels is not None:
                self.kernels.copy_codes(kernels)

        return copy

    def read_ahead(self, batch: DraftBatch, row: int, start: int, stop: int, first: int) -> None:
        """See `FeatureRound`; not captured."""
        self.torch.read_ahead(batch, row, start, stop, first)

    @torch.no_grad()
    def propose(
        self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], firsts: Sequence[int]
    ) -> Proposed:
        """See `FeatureRound`. The number of rows is rounded up, so that few shapes are captured."""
        config, num_rows, num_steps = self.net.config, len(batch.lengths), max(batch.lengths)
        rows = bucket(num_rows, 1, self._num_slots)
        # Padding rows write beyond the longest context, where no query's row reaches.
        padding, nowhere = rows - num_rows, self._length - self._num_new - num_steps
        placed = [[*starts, *[nowhere] * padding], [*counts, *[1] * padding], [*firsts, *[0] * padding]]
        draws = Draws.of(batch, config.vocab_tokens, rows)
        filters = () if draws is None else tuple(one is not None for one in draws.shaping)

        def work_by(layer: FeatureLayer) -> Work:
            def work(places_3B: Tensor, *draws_tensors: Tensor) -> tuple[Tensor, ...]:
                of_draws = None if draws is None else draws.like(draws_tensors)
                choice = ChainChoice(
                    num_steps, of_draws, config.target_vocab_tokens, self.net.vocab_ids_R, find=self._find
                )
                # Every replay reads this batch's tensors again: the target's own memory, see `DraftBatch`.
                run_chain(layer, batch.tokens_SL, batch.hidden_SLH, places_3B, choice, self._num_new)
                probs_BKV = choice.draft_probs_BKV
                return (choice.token_ids_BK,) if probs_BKV is None else (choice.token_ids_BK, probs_BKV)

            return work

        ids_BK, *probs = self._graphs.run(
            (rows, num_steps, filters),
            work_by(self.torch),
            pinned(placed, batch.tokens_SL.device),
            *(() if draws is None else draws.tensors()),
            instead=None if self.kernels is None else work_by(self.kernels),
        )
        return Proposed(ids_BK[:num_rows], probs[0][:num_rows] if probs else None)


_MATRICES = ("qkv", "attention_out", "gate_up", "down")


class KernelFeature:
    """The feature layer by Triton kernels (a `osd.kernels.reference.drafting.feature_round.FeatureLayer`).

    For few rows the weights are quantised to eight bits, which halves the bytes read per proposed token; the recorded
    draft distribution is that of the quantised weights.

    Args:
        net: the network; its memory is read, not copied.
        shared: the target's embedding.
        head_rows: rows and bias of the head for the reduced vocabulary.
        cache: the drafter's cache, of one layer.
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

    def enter(self, hidden_BTH: Tensor) -> Tensor:
        """See `FeatureLayer`: the last hidden states themselves."""
        return hidden_BTH

    def read(
        self, tokens_BT: Tensor, hidden_BTH: Tensor, starts_B: Tensor, firsts_B: Tensor, first_row: int = 0
    ) -> Tensor:
        """See `FeatureLayer`; only for rows from 0 on."""
        from osd.kernels.gpu.rows import joined

        assert first_row == 0

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
        """See `FeatureLayer`."""
        return project(self._head, feature_BH)

    def norm_heads(self, heads: Tensor) -> Tensor:
        """No norm: the feature layer has none for heads."""
        return heads

    def copy_codes(self, other: KernelFeature) -> None:
        """Copy another layer's quantised weights into this one's memory."""
        for place, new in zip(self._codes(), other._codes(), strict=True):
            place.codes_OI.copy_(used_by_stream(new.codes_OI))
            place.steps_O.copy_(used_by_stream(new.steps_O))

    def _codes(self) -> Iterator[ByteCodes]:
        for projection in (self._fuse, self._head, *self.dense.values()):
            assert projection.codes is not None
            yield projection.codes


def _coded(weight_OI: Tensor, bias_O: Tensor | None = None) -> DenseProjection:
    return DenseProjection(weight_OI, bias_O, ByteCodes.of(weight_OI))


def _norm(module: nn.RMSNorm) -> Norm:
    assert module.eps is not None
    return Norm(module.weight, module.eps)
