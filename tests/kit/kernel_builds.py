"""The kernels that tests call, compiled by several processes at once rather than by the tests that need them first."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from osd.kernels.cpu.compiling import store
from osd.kernels.cpu.compiling.build import build
from osd.kernels.cpu.compiling.building import Build
from osd.kernels.cpu.compiling.signatures import KernelSet
from osd.kernels.cpu.kernels import kernels

_SETS = [KernelSet(dtype, is_threaded) for is_threaded in (False, True) for dtype in (torch.float32, torch.bfloat16)]


def _missing() -> list[KernelSet]:
    return [] if kernels() is None else [these for these in _SETS if not store.is_built(these)]


def build_kernels() -> None:
    """Compile what is missing, in this process and one more for each other set of kernels."""
    with ExitStack() as stack:
        for these in _missing():
            stack.callback(Build(these).stop)
        for these in _missing():
            build(these)  # what no other process has begun; then it waits for the others


if __name__ == "__main__":
    build_kernels()
