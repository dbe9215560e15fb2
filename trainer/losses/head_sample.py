"""The head's rows that a training step needs: of the tokens that the target finds likely, and of a few of the others.

Of all other tokens a loss needs only the sum of their probabilities. A random sample stands for them, each of its
tokens for several: its logit is raised by the log of their number, so that the sum of exponentials is right in
expectation (sampled softmax, Jean et al. 2015, arXiv 1412.2007). With a vocabulary of thousands that saves most of the
head's products, which otherwise are nearly half of a step.

Shapes: R reduced vocabulary, V the target's vocabulary, S sampled rows, H hidden size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.losses.losses import slot_table

_NUM_OTHERS = 512
"""Tokens that stand for those that the target finds unlikely in the whole batch."""


class HeadSample(NamedTuple):
    """Some of the head's rows; logits are `features @ head_SH.T + bias_S`."""

    head_SH: Tensor
    bias_S: Tensor | None
    slot_V: Tensor
    """For `coarsen`: index of each wanted token id; S for all others, also those that stand for more."""


def sample_head(head: HeadSample, vocab_ids_R: Tensor, wanted: Tensor, seed: int) -> HeadSample:
    """The rows of wanted tokens and of some others; the whole head if that would save little.

    Args:
        head: the whole head, R rows.
        vocab_ids_R: their token ids.
        wanted: int64, token ids whose logits are needed; negative ones are no tokens. Of any shape.
        seed: of the sample.
    """
    size, device = len(vocab_ids_R), vocab_ids_R.device
    slots = head.slot_V[wanted[wanted >= 0]]
    is_wanted_R = torch.zeros(size + 1, dtype=torch.bool, device=device).index_fill_(0, slots, True)[:size]
    wanted_W, others = is_wanted_R.nonzero()[:, 0], (~is_wanted_R).nonzero()[:, 0]
    if len(others) <= 2 * _NUM_OTHERS:
        return head
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))[:_NUM_OTHERS]
    rows_S = torch.cat((wanted_W, others[order.to(device)]))
    bias_S = torch.zeros(len(rows_S), dtype=head.head_SH.dtype, device=device)
    bias_S[len(wanted_W) :] = math.log(len(others) / _NUM_OTHERS)
    if head.bias_S is not None:
        bias_S += head.bias_S[rows_S]
    slot_V = slot_table(vocab_ids_R[wanted_W], len(head.slot_V))
    return HeadSample(head.head_SH[rows_S], bias_S, slot_V.masked_fill(slot_V == len(wanted_W), len(rows_S)))
