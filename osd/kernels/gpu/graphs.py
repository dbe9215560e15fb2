"""Captures work as CUDA graphs and replays it, instead of launching its operations one by one.

A pass over a few tokens is hundreds of small operations, which take longer to launch than to run. Work of one shape is
captured once and then replayed. It must be a function of tensors only: addresses and shapes are fixed, and the host
must not read any value.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import TypeAlias

import torch
from torch import Tensor

Work: TypeAlias = Callable[..., tuple[Tensor, ...]]
"""A function from tensors to tensors; it may also write to tensors of its own, the same for the same input."""
Capture: TypeAlias = Callable[[Work, tuple[Tensor, ...]], Work]
"""Captures work, given example inputs of the right shapes; returns the replay."""
_TRIALS = 5


class GraphPool:
    """Captured work by shape.

    Args:
        capture: how work is captured.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._replays: dict[Hashable, Work] = {}

    def run(self, key: Hashable, work: Work, *inputs: Tensor, instead: Work | None = None) -> tuple[Tensor, ...]:
        """The outputs of `work(*inputs)`; they are overwritten by the next run with the same key.

        Args:
            key: identifies the work and all shapes.
            work: captured if the key is new.
            inputs: of the key's shapes; on the device, or made by `pinned`.
            instead: an alternative with the same result; the faster of both is kept.
        """
        replay = self._replays.get(key)
        if replay is None:
            replay = self._capture(work, inputs)
            if instead is not None:
                replay = quickest(replay, self._capture(instead, inputs), inputs)
            self._replays[key] = replay
        return replay(*inputs)


def quickest(first: Work, second: Work, inputs: tuple[Tensor, ...]) -> Work:
    """The faster of two replays: both run several times in turn, and their minima are compared."""
    times = [[_seconds(replay, inputs) for replay in (first, second)] for _ in range(_TRIALS)]
    first_s, second_s = (min(column) for column in zip(*times, strict=True))
    return first if first_s <= second_s else second


def _seconds(replay: Work, inputs: tuple[Tensor, ...]) -> float:
    started_s = time.perf_counter()
    outputs = replay(*inputs)
    outputs[0].view(-1)[0].item()  # synchronises with the device
    return time.perf_counter() - started_s


class CudaCapture:
    """Captures CUDA graphs, all in one memory pool.

    Outputs of a replay are valid until the same graph is replayed; other graphs do not reuse their memory.
    """

    _WARM_UPS = 3

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Work, inputs: tuple[Tensor, ...]) -> Work:
        """Run the work a few times, so that libraries select their kernels, then capture it."""
        fixed = tuple(one.to(self._device, copy=True) for one in inputs)
        aside = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]  # torch left it untyped
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            for _ in range(self._WARM_UPS):
                work(*fixed)
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # "thread_local", since other threads use the device meanwhile: to load weights, and to wait for copies.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = work(*fixed)

        def replay(*new: Tensor) -> tuple[Tensor, ...]:
            for place, one in zip(fixed, new, strict=True):
                place.copy_(one, non_blocking=True)
            graph.replay()
            return outputs

        return replay


def bucket(value: int, smallest: int, largest: int) -> int:
    """The smallest of `smallest`, 2 * `smallest`, 4 * `smallest`, …, `largest` that is at least `value`."""
    size = smallest
    while size < value:
        size *= 2
    return min(size, largest)
