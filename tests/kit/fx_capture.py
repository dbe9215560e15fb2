"""A stand-in for CUDA graphs on a CPU: work is traced once, and the trace is replayed.

As with a CUDA graph, host values that the work reads while it is traced become constants: a value that should have been
a tensor, or a decision that depends on one, gives wrong results or fails to trace.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from osd.kernels.gpu.graphs import Work


def run_at_once(work: Work, inputs: tuple[Tensor, ...]) -> Work:
    """Capture without a trace, which takes seconds a test; outputs are overwritten by the next replay, as a graph's."""
    with torch.no_grad():
        outputs = work(*inputs)

    def replay(*new: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            for place, one in zip(outputs, work(*new), strict=True):
                place.copy_(one)
        return outputs

    return replay


class FxCapture:
    """Counts what it captures."""

    def __init__(self) -> None:
        self.num_captured = 0

    def __call__(self, work: Work, inputs: tuple[Tensor, ...]) -> Work:
        self.num_captured += 1
        fixed = tuple(one.clone() for one in inputs)
        with torch.no_grad():
            traced = make_fx(work)(*fixed)
        outputs = tuple(one.clone() for one in traced(*fixed))

        def replay(*new: Tensor) -> tuple[Tensor, ...]:
            for place, one in zip(fixed, new, strict=True):
                assert place.shape == one.shape and place.dtype == one.dtype
                place.copy_(one)
            for place, one in zip(outputs, traced(*fixed), strict=True):
                place.copy_(one)
            return outputs  # overwritten by the next replay, as with a graph

        return replay
