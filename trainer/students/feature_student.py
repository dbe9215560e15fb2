"""The `feature` drafter in training: unrolls several steps of its chain, with the same attention as in serving.

In serving, a chain's first step reads the target's hidden state, and each later step the feature of the step before.
Trained on true hidden states alone, the later steps would never see such inputs; EAGLE-3's training-time test (Li et
al. 2025, arXiv 2503.01840) and HASS (Zhang et al. 2024, arXiv 2408.15766) therefore unroll the chain, as this does.

Depth 1 at entry t reads the true hidden state at t. Depth d at entry t reads the depth d - 1 feature of entry t - 1 and
attends to what serving's KV cache holds at that moment: keys from true hidden states of entries up to t - d + 1, and
the chain's own keys, of depth i at entry t - (d - i) for i = 2 .. d. Chains also go on over tokens that were rejected
(trainer/examples/branches.py).

Shapes: B rows, T = C + Q columns (see trainer/examples/batches.py), H hidden size, N heads or positions, D head size,
R reduced vocabulary, V the target's vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osd.drafters.weights import check_state
from osd.kernels.reference.drafting.eagle3_net import Eagle3Net
from osd.kernels.reference.drafting.feature_net import FeatureNet, head_rows
from osd.records.shared_rows import SharedRows
from trainer.examples.batches import Batch
from trainer.examples.branches import Branches
from trainer.examples.examples import Alignment
from trainer.losses.acceptance import ChainSums, chain_sums, emitted_log_probs, position_acceptance
from trainer.losses.losses import Coarse, Teacher, coarsen, slot_table, slots_of
from trainer.students.branch_chain import Depth, attend, branch_features
from trainer.students.student import LossTerms, mixed_precision
from trainer.students.token_counts import most_frequent

_DEPTH_WEIGHT = 0.8
"""Loss weight of depth d is this to the power d - 1, since a depth matters only if it is reached; EAGLE-3's value."""


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
        for depth, found in enumerate(self._depths(batch)):
            mask_BQ = _from_column(batch.in_loss_BQ, depth)
            logits_NR = self._logits(found.feature_BQH[mask_BQ])
            losses.append(self._loss(coarsen(logits_NR, batch.teacher(mask_BQ), self._slot_V)))
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
        by_depth = []
        for depth, feature_BQH in enumerate(self.features(batch)):
            mask_BQ = _from_column(batch.predicting_BQ, depth)
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
        net, start = self.net, batch.num_context
        assert batch.hidden_BTH is not None
        with mixed_precision(self._device, self._compute_dtype):
            embedding_BTH = F.embedding(batch.input_ids_BT, self._embedding_VH).float()
            cos_BTD, sin_BTD = net.rotation(batch.positions_BT, torch.float32)
            inputs = net.attention_inputs(embedding_BTH, net.enter(batch.hidden_BTH.float()), cos_BTD, sin_BTD)
            keys, values = [inputs.key_BNTD], [inputs.value_BNTD]
            inputs = inputs._replace(
                residual_BTH=inputs.residual_BTH[:, start:], query_BNTD=inputs.query_BNTD[:, :, start:]
            )
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
        self._head_RH = head_RH.detach().to(self._compute_dtype)
        self._bias_R = None if bias_R is None else bias_R.detach().to(self._compute_dtype)
        self._slot_V = slot_table(self.net.vocab_ids_R, self.net.config.target_vocab_tokens)

    def _logits(self, feature_NH: Tensor) -> Tensor:
        return F.linear(feature_NH.to(self._compute_dtype), self._head_RH, self._bias_R)

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


def _from_column(mask_BQ: Tensor, first: int) -> Tensor:
    """The mask with all columns before `first` cleared."""
    mask_BQ = mask_BQ.clone()
    mask_BQ[:, :first] = False
    return mask_BQ
