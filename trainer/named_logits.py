"""A few named logits and the log-sum-exp of all others, in as few passes over the logits as there can be.

At thousands of positions and a vocabulary of thousands, a training step on a CPU spends more time on reading and
writing logits than on matrix products; rows are done a few at a time, in a buffer that stays in the cache.

Shapes: N positions, K named logits each, R logits a position.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LOG_ZERO = -1e4
"""Log-probability of the impossible: its exponential is exactly 0, and 0 x it is 0, not NaN as with infinity."""
_BUFFER_FLOATS = 1 << 18


def name_logits(logits_NR: Tensor, slots_NK: Tensor, slots_N1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Single some logits out.

    Args:
        logits_NR: of any float type; gradients are of the same.
        slots_NK: int64, those that are named; R stands for none, whose logit is `LOG_ZERO`. Of the others, no two of a
            row are the same.
        slots_N1: int64, one more that is only looked at.

    Returns:
        In float32 the logits at both, `[N, K]` and `[N, 1]`, and the log-sum-exp `[N, 1]` of those that `slots_NK` does
        not name.
    """
    outputs: tuple[Tensor, Tensor, Tensor] = _NamedLogits.apply(logits_NR, slots_NK, slots_N1)  # type: ignore[no-untyped-call]
    return outputs


class _NamedLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NR: Tensor, slots_NK: Tensor, slots_N1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs = []
        for rows, buffer_nS in _buffers(logits_NR):
            buffer_nS[:, -1] = LOG_ZERO
            named_nK, other_n1 = buffer_nS.gather(1, slots_NK[rows]), buffer_nS.gather(1, slots_N1[rows])
            rest_n1 = buffer_nS.scatter_(1, slots_NK[rows], LOG_ZERO)[:, :-1].logsumexp(1, keepdim=True)
            outputs.append((named_nK, other_n1, rest_n1))
        if not outputs:
            empty_N1 = logits_NR.new_zeros((0, 1), dtype=torch.float32)
            outputs.append((empty_N1.expand(0, slots_NK.shape[1]), empty_N1, empty_N1))
        named_NK, other_N1, rest_N1 = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        ctx.save_for_backward(logits_NR, slots_NK, slots_N1, rest_N1)
        return named_NK, other_N1, rest_N1

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        """A named logit's gradient is its own; the others share that of their log-sum-exp by softmax."""
        logits_NR, slots_NK, slots_N1, rest_N1 = ctx.saved_tensors
        named_NK, other_N1, of_rest_N1 = grads
        grad_NR = torch.empty_like(logits_NR)
        for rows, buffer_nS in _buffers(logits_NR):
            buffer_nS.sub_(rest_N1[rows]).exp_().mul_(of_rest_N1[rows])
            buffer_nS.scatter_(1, slots_NK[rows], named_NK[rows]).scatter_add_(1, slots_N1[rows], other_N1[rows])
            grad_NR[rows] = buffer_nS[:, :-1]
        return grad_NR, None, None


def _buffers(logits_NR: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Some rows after others in float32, with a column more, whose content is of no matter, for the slot of none."""
    num_rows, size = logits_NR.shape
    # A GPU would rather have all at once.
    at_once = max(1, _BUFFER_FLOATS // size) if logits_NR.device.type == "cpu" else max(1, num_rows)
    buffer_nS = torch.zeros((min(at_once, num_rows), size + 1), device=logits_NR.device)
    for first in range(0, num_rows, at_once):
        rows = slice(first, min(first + at_once, num_rows))
        filled_nS = buffer_nS[: rows.stop - rows.start]
        filled_nS[:, :-1] = logits_NR[rows]
        yield rows, filled_nS
