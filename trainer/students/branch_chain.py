"""The features of branches: chains of the `feature` drafter, continued over rejected tokens.

A branch at depth d attends to what serving's KV cache held when it was drafted: keys from true hidden states up to the
column where its chain began, the chain's keys at emitted tokens, and its own keys.

Shapes: B rows, T = C + Q columns, W branches (see trainer/examples/branches.py), H hidden size, N heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.kernels.reference.drafting.eagle3_net import Eagle3Net
from osd.kernels.reference.drafting.feature_net import AttentionInputs, FeatureNet
from trainer.examples.batches import Batch

Net: TypeAlias = FeatureNet | Eagle3Net


class Depth(NamedTuple):
    """One depth of the chains that begin at every column."""

    feature_BQH: Tensor
    """The drafter's features at the predicting columns."""
    key_BNTD: Tensor
    """Of depth 1 at all columns; of later ones at the predicting columns only."""
    value_BNTD: Tensor


def branch_features(net: Net, embedding_VH: Tensor, batch: Batch, depths: Sequence[Depth]) -> Iterator[Tensor]:
    """For each depth from 2 on, the features `[B, W, H]` of all branches; undefined where a branch reads no token.

    Args:
        net: the drafter's network.
        embedding_VH: the target's embedding.
        batch: with branches.
        depths: of the chains that begin at every column, from depth 1 on.
    """
    branches = batch.branches
    assert branches is not None
    begin_BW, num_predicting = branches.column_W, batch.num_predicting
    position_BW = batch.positions_BT[:, batch.num_context :].gather(1, begin_BW)
    keys, values = [depths[0].key_BNTD], [depths[0].value_BNTD]
    branched_BW1 = torch.zeros_like(begin_BW, dtype=torch.bool)[:, :, None]
    feature_BWH = depths[0].feature_BQH.new_zeros(())
    for depth, (before, here) in enumerate(zip(depths, depths[1:], strict=False), start=2):
        emitted_BWH = _at(before.feature_BQH, begin_BW + depth - 2)
        before_BWH = torch.where(branched_BW1, feature_BWH, emitted_BWH)
        tokens_BW = branches.tokens_WD[:, :, depth - 2]
        cos_BWD, sin_BWD = net.rotation(position_BW + depth - 1, torch.float32)
        inputs = net.attention_inputs(
            F.embedding(tokens_BW.clamp(min=0), embedding_VH).float(), before_BWH, cos_BWD, sin_BWD
        )
        branched_BW1 = (tokens_BW >= 0)[:, :, None]
        # A branch that ended goes on with the emitted text's keys; nothing is learnt from it any more.
        column_BW = (begin_BW + depth - 1).clamp(max=num_predicting - 1)
        keys.append(torch.where(branched_BW1[:, None], inputs.key_BNTD, _at_heads(here.key_BNTD, column_BW)))
        values.append(torch.where(branched_BW1[:, None], inputs.value_BNTD, _at_heads(here.value_BNTD, column_BW)))
        feature_BWH = attend(net, inputs, keys, values, _mask(batch, begin_BW, depth, net.config.window_tokens))
        yield feature_BWH


def attend(
    net: Net, inputs: AttentionInputs, keys: Sequence[Tensor], values: Sequence[Tensor], mask_BQL: Tensor
) -> Tensor:
    """The network's features `[B, Q, H]` from queries, over the keys of all depths, L together."""
    attended_BNQD = F.scaled_dot_product_attention(
        inputs.query_BNTD,
        torch.cat(list(keys), dim=2),
        torch.cat(list(values), dim=2),
        attn_mask=mask_BQL[:, None],
        enable_gqa=keys[0].shape[1] < inputs.query_BNTD.shape[1],
    )
    return net.feature(inputs.residual_BTH, attended_BNQD.transpose(1, 2).flatten(2))


def _mask(batch: Batch, begin_BW: Tensor, depth: int, window: int) -> Tensor:
    """Which keys each branch attends to, bool `[B, W, T + (depth - 1) * W]`."""
    key_T = torch.arange(batch.real_BT.shape[1], device=begin_BW.device)
    begin_BW1 = batch.num_context + begin_BW[:, :, None]
    known_BWT = (key_T <= begin_BW1) & (key_T > begin_BW1 + depth - 1 - window) & batch.real_BT[:, None, :]
    own_WW = torch.eye(begin_BW.shape[1], dtype=torch.bool, device=begin_BW.device)
    chain = [(own_WW & (depth - chained < window)).expand(len(begin_BW), -1, -1) for chained in range(2, depth + 1)]
    return torch.cat([known_BWT, *chain], dim=2)


def _at(values_BQH: Tensor, columns_BW: Tensor) -> Tensor:
    """The values at each branch's column, `[B, W, H]`."""
    columns_BW = columns_BW.clamp(max=values_BQH.shape[1] - 1)
    return values_BQH.gather(1, columns_BW[:, :, None].expand(-1, -1, values_BQH.shape[2]))


def _at_heads(values_BNQD: Tensor, columns_BW: Tensor) -> Tensor:
    """The values at each branch's column, `[B, N, W, D]`."""
    _, num_heads, _, size = values_BNQD.shape
    return values_BNQD.gather(2, columns_BW[:, None, :, None].expand(-1, num_heads, -1, size))
