"""Between host and device without waiting: the host asks a GPU for an answer once a round, and only there it waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def upload(values: Any, device: torch.device) -> Tensor:
    """Numbers, in lists however deep, as a tensor on the device; later work of the device sees it, the host goes on.

    A copy from memory that is not pinned would make the host wait for all that the device was asked before.
    """
    return sent(staged(values, device), device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device, which it is on its way to."""
    return tensor if tensor.device == device else tensor.to(device, non_blocking=True)


def staged(values: Any, device: torch.device) -> Tensor:
    """Numbers as a tensor on the host, from where a copy to the device makes nobody wait."""
    tensor = values if isinstance(values, Tensor) else _tensor(values)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def prepended(first: Sequence[int], numbers_BK: Tensor) -> Tensor:
    """The device's numbers with one of the host's before each row's, `[B, 1 + K]`."""
    device = numbers_BK.device
    if device.type == "cpu":  # where reading them waits for nothing, and takes less time than an operation of torch
        return upload([[one, *row] for one, row in zip(first, numbers_BK.tolist(), strict=True)], device)
    return torch.cat((upload(first, device)[:, None], numbers_BK), dim=1)


def download(tensor: Tensor) -> Tensor:
    """A copy on the CPU, which may be read once `arrival`, taken afterwards, was waited for."""
    return tensor.to("cpu", non_blocking=True)


def arrival(device: torch.device) -> Callable[[], None]:
    """Waits, on any thread, until the device has done everything that it was asked for so far."""
    if device.type != "cuda":
        return _nothing
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch left it untyped
    event.record(torch.cuda.current_stream(device))
    wait: Callable[[], None] = event.synchronize
    return wait


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """What a GPU is asked for in here it does beside its other work; it is done when this ends."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # as above
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def used_here(tensor: Tensor) -> Tensor:
    """The same, made in `beside`: its memory is not given away before this thread's work with it is done."""
    if tensor.device.type == "cuda":
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor


def _tensor(values: Any) -> Tensor:
    """By way of numpy, which reads lists in half the time that torch needs."""
    array = np.array(values)
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)


def _nothing() -> None:
    """A CPU has always arrived."""
