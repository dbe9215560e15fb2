"""The kernels that tests call, compiled by several processes at once rather than by the tests that need them first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache

import torch

from osd.kernels.cpu.compiling import store
from osd.kernels.cpu.compiling.build import build
from osd.kernels.cpu.compiling.building import Build
from osd.kernels.cpu.compiling.signatures import KernelSet
from osd.kernels.cpu.kernels import kernels

_SETS = [KernelSet(dtype, is_threaded) for is_threaded in (False, True) for dtype in (torch.float32, torch.bfloat16)]


def _missing() -> list[KernelSet]:
    return [] if kernels() is None else [these for these in _SETS if not store.is_built(these)]


@contextmanager
def build_in_background() -> Iterator[None]:
    """Compile what is missing in processes of the lowest priority, which end with this context."""
    with ExitStack() as stack:
        for these in _missing():
            stack.callback(Build(these).stop)
        yield


@cache
def finish_builds() -> None:
    """Once a process: wait until everything is compiled, and compile in this process what no other one has begun."""
    for these in _missing():
        build(these)
