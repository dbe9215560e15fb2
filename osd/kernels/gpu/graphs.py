"""Replaying a fixed piece of work instead of launching its operations one by one.

A pass over a few tokens is hundreds of small operations; on a GPU launching them takes longer than running them. Work
of one shape is therefore captured once as a CUDA graph and replayed. What is captured must be a function of tensors
alone: its addresses are fixed, its shapes are fixed, and no value is ever asked for by the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch
from torch import Tensor

Work: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""Tensors in, tensors out; it may also write to tensors that it owns, the same for the same input."""
Capture: TypeAlias = Callable[[Work, tuple[Tensor, ...]], Work]
"""Makes a replay of a piece of work, given example inputs of the shapes it will get."""
_TRIALS = 5


class GraphPool:
    """Captured pieces of work, by shape.

    Args:
        capture: how work is captured.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._replays: dict[Hashable, Work] = {}

    def run(self, key: Hashable, work: Work, *inputs: Tensor, instead: Work | None = None) -> tuple[Tensor, ...]:
        """What `work(*inputs)` gives; the tensors are overwritten by the next run of the same key.

        Args:
            key: names the work and everything of its shape.
            work: captured when the key is new.
            inputs: of the shapes that the key stands for; on the device, or ready to be copied there (`staged`).
            instead: does the same in another way; the faster of both is kept.
        """
        replay = self._replays.get(key)
        if replay is None:
            replay = self._capture(work, inputs)
            if instead is not None:
                replay = quickest(replay, self._capture(instead, inputs), inputs)
            self._replays[key] = replay
        return replay(*inputs)


def quickest(first: Work, second: Work, inputs: tuple[Tensor, ...]) -> Work:
    """Which of two replays takes less time, by running them in turns; the least counts, for noise only adds."""
    times = [[_seconds(replay, inputs) for replay in (first, second)] for _ in range(_TRIALS)]
    first_s, second_s = (min(column) for column in zip(*times, strict=True))
    return first if first_s <= second_s else second


def _seconds(replay: Work, inputs: tuple[Tensor, ...]) -> float:
    started_s = time.perf_counter()
    outputs = replay(*inputs)
    outputs[0].view(-1)[0].item()  # waits for the device
    return time.perf_counter() - started_s


class CudaCapture:
    """Captures CUDA graphs, all in one memory pool.

    A replay's outputs hold until the same graph is replayed: they are kept, so no other graph is given their memory.
    """

    _WARM_UPS = 3

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work, inputs: tuple[Tensor, ...]) -> Work:
        """Run the work a few times, so that libraries choose their kernels, then record it."""
        fixed = tuple(one.to(self._device, copy=True) for one in inputs)
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch left it untyped
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(self._WARM_UPS):
                work(*fixed)
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile: one loads weights, one waits for copies.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = work(*fixed)

        def replay(*new: Tensor) -> tuple[Tensor, ...]:
            for place, one in zip(fixed, new, strict=True):
                place.copy_(one, non_blocking=True)
            graph.replay()
            return outputs

        return replay


def bucket(value: int, smallest: int, largest: int) -> int:
    """The least of `smallest`, twice that, …, `largest` that holds the value."""
    size = smallest
    while size < value:
        size *= 2
    return min(size, largest)
