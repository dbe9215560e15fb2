"""Between host and device without waiting: the host asks a GPU for an answer once a round, and only there it waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osd.machine.arrays import Numbers, is_on_host, tensor


def upload(values: Any, device: torch.device) -> Tensor:
    """Numbers, in lists however deep, as a tensor on the device; later work of the device sees it, the host goes on.

    A copy from memory that is not pinned would make the host wait for all that the device was asked before.
    """
    return sent(staged(values, device), device)


def sent(numbers: Numbers, device: torch.device) -> Tensor:
    """On the device, which they are on their way to."""
    if isinstance(numbers, np.ndarray):
        return upload(numbers, device)
    return numbers if numbers.device == device else numbers.to(device, non_blocking=True)


def staged(values: Any, device: torch.device) -> Tensor:
    """Numbers as a tensor on the host, from where a copy to the device makes nobody wait."""
    on_host = values if isinstance(values, Tensor) else _tensor(values)
    return on_host.pin_memory() if device.type == "cuda" else on_host


def prepended(first: Sequence[int], numbers_BK: Numbers | None) -> Numbers:
    """One of the host's numbers before each row's, if any, `[B, 1 + K]`: on the device where those are."""
    if numbers_BK is None:
        return np.array([[one] for one in first])
    if is_on_host(numbers_BK):  # where reading them waits for nothing
        return np.array([[one, *row] for one, row in zip(first, numbers_BK.tolist(), strict=True)])
    there_BK = tensor(numbers_BK)
    return torch.cat((upload(first, there_BK.device)[:, None], there_BK), dim=1)


def download(tensor: Tensor) -> Tensor:
    """A copy on the CPU, which may be read once `arrival`, taken afterwards, was waited for."""
    return tensor.to("cpu", non_blocking=True)


def arrival(device: torch.device) -> Callable[[], None]:
    """Waits, on any thread, until the device has done everything that it was asked for so far."""
    if device.type != "cuda":
        return has_arrived
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


def has_arrived() -> None:
    """The wait for what is on the host already."""
