"""The `feature` drafter in training: unrolls several steps of its chain, with the same attention as in serving.

In serving, a chain's first step reads the target's hidden state, and each later step the feature of the step before.
Trained on true hidden states alone, the later steps would never see such inputs; EAGLE-3's training-time test (Li et
al. 2025, arXiv 2503.01840) and HASS (Zhang et al. 2024, arXiv 2408.15766) therefore unroll the chain, as this does.

Depth 1 at entry t reads the true hidden state at t. Depth d at entry t reads the depth d - 1 feature of entry t - 1 and
attends to what serving's KV cache holds at that moment: keys from true hidden states of entries up to t - d + 1, and
the chain's own keys, of depth i at entry t - (d - i) for i = 2 .. d. Chains also go on over tokens that were rejected
(trainer/examples/branches.py).

Shapes: B rows, T = C + Q columns (see trainer/examples/batches.py), H hidden size, N heads or positions, D head size,
R reduced vocabulary, S sample of it (see trainer/losses/head_sample.py), V the target's vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osd.drafters.weights import check_state
from osd.kernels.reference.drafting.eagle3_net import Eagle3Net
from osd.kernels.reference.drafting.feature_net import AttentionInputs, FeatureNet, head_rows
from osd.records.shared_rows import SharedRows
from trainer.examples.batches import Batch
from trainer.examples.branches import Branches
from trainer.examples.examples import Alignment
from trainer.losses.acceptance import ChainSums, chain_sums, emitted_log_probs, position_acceptance
from trainer.losses.head_sample import HeadSample, sample_head
from trainer.losses.losses import Coarse, Teacher, coarsen, slot_table, slots_of
from trainer.students.branch_chain import Depth, attend, branch_features
from trainer.students.student import LossTerms, mixed_precision
from trainer.students.token_counts import most_frequent

_DEPTH_WEIGHT = 0.8
"""Loss weight of depth d is this to the power d - 1, since a depth matters only if it is reached; EAGLE-3's value."""

_TRAINED_CONTEXT_COLUMNS = 64
"""Columns before those that are trained on, which take time and carry no loss. With 64 instead of a whole window of 256
the same time trains on half as many tokens again, and teaches more (measured: docs/adaptation.md)."""


class FeatureStudent:
    """Trains the drafter's `FeatureNet`.

    Args:
        net: the network, with float32 weights.
        shared: the target's embedding and head, frozen, of any float type.
        loss: one of `trainer.losses.losses.LOSSES`.
        unroll_steps: number of depths trained on.
        rejected_loss: as `loss`, after rejected tokens; None does not train on them.
        compute_dtype: of matrix products: float32, or bfloat16 where the device is fast at it.
    """

    kind = "feature"
    max_batch_columns = 512

    def __init__(
        self,
        net: FeatureNet | Eagle3Net,
        shared: SharedRows,
        *,
        loss: Callable[[Coarse], Tensor],
        unroll_steps: int,
        rejected_loss: Callable[[Coarse], Tensor] | None = None,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.net, self._shared, self._loss, self._rejected_loss = net, shared, loss, rejected_loss
        self._unroll_steps, self._compute_dtype = unroll_steps, compute_dtype
        self._device = shared.embedding_VH.device
        config = net.config
        self.config = config.as_dict()
        self.alignment = Alignment(
            lookahead=2,
            vocab_tokens=config.target_vocab_tokens,
            hidden_size=config.hidden_size,
            context_columns=config.window_tokens - 1,
            trained_context_columns=_TRAINED_CONTEXT_COLUMNS,
            branch_depth=0 if rejected_loss is None else unroll_steps,
        )
        self._embedding_VH = shared.embedding_VH
        self._prepare()
        self._take_head_rows()

    def _prepare(self) -> None:
        """Set what another kind of network has otherwise."""

    def parameters(self) -> list[nn.Parameter]:
        """The network's weights."""
        return list(self.net.parameters())

    def loss_terms(self, batch: Batch) -> LossTerms:
        """Losses of all depths; depth d starts at the d-th predicting column, where its chain has begun."""
        batch = batch.to(self._device)
        losses, weights, depths = [], [], []
        logits_of, slot_V = self._head_for(batch)
        for depth, found in enumerate(self._depths(batch)):
            mask_BQ = _from_column(batch.in_loss_BQ, depth)
            logits_NS = logits_of(found.feature_BQH[mask_BQ])
            losses.append(self._loss(coarsen(logits_NS, batch.teacher(mask_BQ), slot_V)))
            weights.append(torch.full_like(losses[-1], _DEPTH_WEIGHT**depth))
            depths.append(found)
        if self._rejected_loss is not None and batch.branches is not None:
            for depth, (logits_NR, teacher) in enumerate(self._branches(batch, batch.branches, depths), start=1):
                losses.append(self._rejected_loss(coarsen(logits_NR, teacher, self._slot_V)))
                weights.append(torch.full_like(losses[-1], _DEPTH_WEIGHT**depth))
        return LossTerms(torch.cat(losses), torch.cat(weights))

    @torch.no_grad()
    def acceptance(self, batch: Batch) -> ChainSums:
        """Acceptance of the depths 1 .. `unroll_steps`."""
        batch = batch.to(self._device)
        by_depth: list[Tensor] = []
        for feature_BQH in self.features(batch):
            # Only columns that a chain reaches: those after an accepted proposal of the depth before.
            mask_BQ = batch.predicting_BQ & _next_column(by_depth[-1] > 0) if by_depth else batch.predicting_BQ
            teacher = batch.teacher(mask_BQ)
            acceptance_BQ = torch.zeros(mask_BQ.shape, device=self._device)
            acceptance_BQ[mask_BQ] = position_acceptance(
                self._logits(feature_BQH[mask_BQ]),
                teacher,
                self.net.vocab_ids_R,
                slots_of(teacher.ids_NK, self._slot_V, len(self.net.vocab_ids_R)),
                batch.temperature_B[:, None].expand_as(mask_BQ)[mask_BQ],
            )
            by_depth.append(acceptance_BQ)
        return chain_sums(by_depth, batch.predicting_BQ)

    @torch.no_grad()
    def emitted_log_probs(self, batch: Batch) -> list[Tensor]:
        """See `Student`."""
        batch = batch.to(self._device)
        size = len(self.net.vocab_ids_R)
        slots_BQ = slots_of(batch.emitted_BQ, self._slot_V, size)
        return [emitted_log_probs(self._logits(feature_BQH), slots_BQ) for feature_BQH in self.features(batch)]

    def features(self, batch: Batch) -> Iterator[Tensor]:
        """For each depth d, the features `[B, Q, H]` at the predicting columns; undefined before column d - 1."""
        return (depth.feature_BQH for depth in self._depths(batch))

    def _depths(self, batch: Batch) -> Iterator[Depth]:
        """Gradients go through predicting columns only: those of context take a fifth of the time, and gain nothing."""
        net, start, hidden_BTH = self.net, batch.num_context, batch.hidden_BTH
        assert hidden_BTH is not None
        with mixed_precision(self._device, self._compute_dtype):
            embedding_BTH = F.embedding(batch.input_ids_BT, self._embedding_VH).float()
            cos_BTD, sin_BTD = net.rotation(batch.positions_BT, torch.float32)

            def read(columns: slice) -> AttentionInputs:
                known_BTH = net.enter(hidden_BTH[:, columns].float())
                return net.attention_inputs(
                    embedding_BTH[:, columns], known_BTH, cos_BTD[:, columns], sin_BTD[:, columns]
                )

            inputs = read(slice(start, None))
            keys, values = [inputs.key_BNTD], [inputs.value_BNTD]
            if start:  # after the other columns: autocast keeps weights that it converts, here without gradients
                with torch.no_grad():
                    context = read(slice(start))
                keys = [torch.cat((context.key_BNTD, inputs.key_BNTD), dim=2)]
                values = [torch.cat((context.value_BNTD, inputs.value_BNTD), dim=2)]
            for depth in range(1, self._unroll_steps + 1):
                feature_BQH = attend(net, inputs, keys, values, self._mask(batch, depth))
                yield Depth(feature_BQH, keys[-1], values[-1])
                if depth == self._unroll_steps:
                    return
                before_BQH = F.pad(feature_BQH[:, :-1], (0, 0, 1, 0))
                inputs = net.attention_inputs(
                    embedding_BTH[:, start:], before_BQH, cos_BTD[:, start:], sin_BTD[:, start:]
                )
                keys.append(inputs.key_BNTD)
                values.append(inputs.value_BNTD)

    def _branches(self, batch: Batch, branches: Branches, depths: Sequence[Depth]) -> Iterator[tuple[Tensor, Teacher]]:
        """For each depth from 2 on, the logits `[N, R]` and the teacher after the tokens read there."""
        with mixed_precision(self._device, self._compute_dtype):
            features = branch_features(self.net, self._embedding_VH, batch, depths)
            for depth, feature_BWH in enumerate(features, start=2):
                yield self._logits(feature_BWH[branches.in_loss(depth)]), branches.teacher(depth)

    def refresh_vocab(self, counts_V: Tensor, *, seen_before: float = 0.0) -> None:
        """Make the most frequent tokens of the traffic the drafter's vocabulary."""
        vocab_ids_R = self.net.vocab_ids_R
        if not torch.equal(vocab_ids_R.cpu(), torch.arange(len(vocab_ids_R))):  # else it is the initial vocabulary
            counts_V = counts_V.index_add(0, vocab_ids_R.cpu(), torch.full((len(vocab_ids_R),), seen_before))
        vocab_ids_R.copy_(most_frequent(counts_V, len(vocab_ids_R)))
        self._take_head_rows()

    def state(self) -> dict[str, Tensor]:
        """The network's weights and its vocabulary, copied to the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.net.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load a version's weights and vocabulary."""
        check_state(state, self.net.state_dict())
        self.net.load_state_dict(dict(state))
        self._take_head_rows()

    def twin(self) -> FeatureStudent:
        """A new network of the same shape, sharing the embedding and head."""
        return type(self)(
            self.net.config.network().to(self._device),
            self._shared,
            loss=self._loss,
            unroll_steps=self._unroll_steps,
            rejected_loss=self._rejected_loss,
            compute_dtype=self._compute_dtype,
        )

    def _take_head_rows(self) -> None:
        head_RH, bias_R = head_rows(self._shared, self.net.vocab_ids_R)
        self._slot_V = slot_table(self.net.vocab_ids_R, self.net.config.target_vocab_tokens)
        self._head = HeadSample(
            head_RH.detach().to(self._compute_dtype),
            None if bias_R is None else bias_R.detach().to(self._compute_dtype),
            self._slot_V,
        )

    def _head_for(self, batch: Batch) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """What makes logits of features in the loss, and the index of each token id among them."""
        wanted = torch.cat((batch.teacher_ids_BQK[batch.in_loss_BQ].flatten(), batch.emitted_BQ[batch.in_loss_BQ]))
        sample = sample_head(self._head, self.net.vocab_ids_R, wanted, seed=crc32(repr(batch.keys).encode()))
        return partial(_logits, sample, self._compute_dtype), sample.slot_V

    def _logits(self, feature_NH: Tensor) -> Tensor:
        return _logits(self._head, self._compute_dtype, feature_NH)

    def _mask(self, batch: Batch, depth: int) -> Tensor:
        """Which keys each predicting column attends to, bool `[B, Q, T + (depth - 1) * Q]`."""
        window = self.net.config.window_tokens
        rows, columns = batch.real_BT.shape
        key_T = torch.arange(columns, device=self._device)
        query_Q1 = key_T[batch.num_context :, None]
        known_QT = (key_T <= query_Q1 - (depth - 1)) & (key_T > query_Q1 - window)
        # Padding attends to itself; with no key at all, softmax would yield NaN.
        itself_QT = (key_T == query_Q1) & (depth == 1)
        blocks = [(known_QT & batch.real_BT[:, None, :]) | itself_QT]
        for chained in range(2, depth + 1):
            back = depth - chained
            link_QQ = (key_T[batch.num_context :] == query_Q1 - back) & (back < window)
            blocks.append(link_QQ.expand(rows, -1, -1))
        return torch.cat(blocks, dim=2)


def _logits(head: HeadSample, dtype: torch.dtype, feature_NH: Tensor) -> Tensor:
    return F.linear(feature_NH.to(dtype), head.head_SH, head.bias_S)


def _from_column(mask_BQ: Tensor, first: int) -> Tensor:
    """The mask with all columns before `first` cleared."""
    mask_BQ = mask_BQ.clone()
    mask_BQ[:, :first] = False
    return mask_BQ


def _next_column(mask_BQ: Tensor) -> Tensor:
    """The columns after those of the mask, in the same row."""
    return F.pad(mask_BQ[:, :-1], (1, 0))
