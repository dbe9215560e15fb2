"""Gathers K logits per position and the log-sum-exp of all other logits, with few passes over the logits.

With thousands of positions and a vocabulary of thousands, a training step on a CPU spends more time on reading and
writing logits than on matrix products. Rows are therefore processed a few at a time, in a float32 buffer that stays in
the processor's cache.

Shapes: N positions, R logits per position, K gathered logits per position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LOG_ZERO = -1e4
"""Log-probability of an impossible event: exp() of it is exactly 0, and 0 times it is 0, not NaN as with -inf."""
BUFFER_FLOATS = 1 << 18


def gather_logits(logits_NR: Tensor, slots_NK: Tensor, slots_N1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gather logits, and reduce the others to their log-sum-exp.

    Args:
        logits_NR: of any float type; their gradient has the same type.
        slots_NK: int64, the indices to gather; R stands for no logit and yields `LOG_ZERO`. Indices below R are
            distinct within a row.
        slots_N1: int64, one more index to gather, which does not count as gathered in the log-sum-exp.

    Returns:
        In float32: the logits at `slots_NK` and at `slots_N1`, and the log-sum-exp `[N, 1]` of all logits of a row that
        are not in `slots_NK`.
    """
    outputs: tuple[Tensor, Tensor, Tensor] = _GatheredLogits.apply(logits_NR, slots_NK, slots_N1)  # type: ignore[no-untyped-call]
    return outputs


class _GatheredLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NR: Tensor, slots_NK: Tensor, slots_N1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = []
        for rows, buffer_nS in _buffers(logits_NR):
            buffer_nS[:, -1] = LOG_ZERO
            gathered_nK, other_n1 = buffer_nS.gather(1, slots_NK[rows]), buffer_nS.gather(1, slots_N1[rows])
            rest_n1 = buffer_nS.scatter_(1, slots_NK[rows], LOG_ZERO)[:, :-1].logsumexp(1, keepdim=True)
            outputs.append((gathered_nK, other_n1, rest_n1))
        if not outputs:
            empty_N1 = logits_NR.new_zeros((0, 1), dtype=torch.float32)
            outputs.append((empty_N1.expand(0, slots_NK.shape[1]), empty_N1, empty_N1))
        gathered_NK, other_N1, rest_N1 = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        ctx.save_for_backward(logits_NR, slots_NK, slots_N1, rest_N1)
        return gathered_NK, other_N1, rest_N1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        """Gradient of a gathered logit: its output's. Of the others: the log-sum-exp's gradient times their softmax."""
        logits_NR, slots_NK, slots_N1, rest_N1 = ctx.saved_tensors
        gathered_NK, other_N1, of_rest_N1 = grads
        grad_NR = torch.empty_like(logits_NR)
        for rows, buffer_nS in _buffers(logits_NR):
            buffer_nS.sub_(rest_N1[rows]).exp_().mul_(of_rest_N1[rows])
            buffer_nS.scatter_(1, slots_NK[rows], gathered_NK[rows]).scatter_add_(1, slots_N1[rows], other_N1[rows])
            grad_NR[rows] = buffer_nS[:, :-1]
        return grad_NR, None, None


def _buffers(logits_NR: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of rows, each with its logits in a float32 buffer; the buffer's extra last column is for index R."""
    num_rows, size = logits_NR.shape
    # On a GPU all rows at once: one launch per operation.
    at_once = max(1, BUFFER_FLOATS // size) if logits_NR.device.type == "cpu" else max(1, num_rows)
    buffer_nS = torch.zeros((min(at_once, num_rows), size + 1), device=logits_NR.device)
    for first in range(0, num_rows, at_once):
        rows = slice(first, min(first + at_once, num_rows))
        filled_nS = buffer_nS[: rows.stop - rows.start]
        filled_nS[:, :-1] = logits_NR[rows]
        yield rows, filled_nS
