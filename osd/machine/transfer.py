"""Copies between host and GPU that do not block the host; it waits for the GPU only where it needs a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osd.machine.arrays import Numbers, array, is_on_host, tensor


def upload(values: Any, device: torch.device) -> Tensor:
    """Copy numbers (nested lists, or a tensor) to the device without blocking; later GPU work sees the copy.

    The copy goes through pinned memory: from pageable memory the host would wait for all work queued on the device.
    """
    return to_device(pinned(values, device), device)


def to_device(numbers: Numbers, device: torch.device) -> Tensor:
    """The numbers on the device, copied without blocking if they are elsewhere."""
    if isinstance(numbers, np.ndarray):
        return upload(numbers, device)
    return numbers if numbers.device == device else numbers.to(device, non_blocking=True)


def pinned(values: Any, device: torch.device) -> Tensor:
    """The numbers as a host tensor, pinned if the device is a GPU, so that copying it does not block."""
    on_host = values if isinstance(values, Tensor) else _tensor(values)
    return on_host.pin_memory() if device.type == "cuda" else on_host


def prepended(first: Sequence[int], numbers_BK: Numbers | None) -> Numbers:
    """Prepend one host number to each row of `numbers_BK`, if any: `[B, 1 + K]`, on the device of `numbers_BK`."""
    if numbers_BK is None:
        return np.array([[one] for one in first])
    if is_on_host(numbers_BK):
        return np.array([[one, *row] for one, row in zip(first, numbers_BK.tolist(), strict=True)])
    there_BK = tensor(numbers_BK)
    return torch.cat((upload(first, there_BK.device)[:, None], there_BK), dim=1)


def in_columns(columns: Sequence[Numbers]) -> list[list[int]]:
    """Combine columns `[B, …]` of integers into one list per row; from a device in one copy, which is waited for."""
    if is_on_host(columns[0]):
        whole: Numbers = np.concatenate([array(one) for one in columns], axis=1)
    else:
        whole = torch.cat([tensor(one) for one in columns], dim=1)
    rows: list[list[int]] = whole.tolist()
    return rows


def download(tensor: Tensor) -> Tensor:
    """Start a copy to the CPU, which may be read once an `arrival` taken after this call has been waited for."""
    return tensor.to("cpu", non_blocking=True)


def arrival(device: torch.device) -> Callable[[], None]:
    """A function that waits, on any thread, for all work queued on the device so far."""
    if device.type != "cuda":
        return no_wait
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch left it untyped
    event.record(torch.cuda.current_stream(device))
    wait: Callable[[], None] = event.synchronize
    return wait


@contextmanager
def on_side_stream(device: torch.device) -> Iterator[None]:
    """Runs the GPU work of this block on a stream of its own, beside other work, and waits for it at the end."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # as above
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def used_by_stream(tensor: Tensor) -> Tensor:
    """Mark a tensor made in `on_side_stream` as used by this thread's stream: its memory is not reused too early."""
    if tensor.device.type == "cuda":
        tensor.record_stream(torch.cuda.current_stream(tensor.device))
    return tensor


def _tensor(values: Any) -> Tensor:
    """Converts through numpy, which reads nested lists in half of torch's time."""
    array = np.array(values)
    return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float64 else array)


def no_wait() -> None:
    """Nothing to wait for: the data is on the host already."""
