"""The argument types for which kernels are compiled: all those that an engine uses.

numba compiles a function when it is first called with new types, which would delay a token by minutes. Everything is
therefore compiled ahead of time, for the types of the sample arguments here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from osd.kernels.cpu.arguments import NONE, Array, Chain, Choice, Known, Shapes, Span, Stack, Trial, ranking_at

_NAMES = {torch.bfloat16: ("chain", "pass", "project", "project_and_rank", "judge", "rank", "norm")}
"""Kernels for each dtype of weights; those that take longest to compile come first."""
_FEW_NAMES = ("pass", "project", "norm")
"""Kernels for the other dtypes."""


class KernelSet(NamedTuple):
    """The kernels that one engine uses."""

    dtype: torch.dtype
    """Dtype of weights, keys and values: bfloat16 or float32."""
    is_threaded: bool
    """Whether they run on several threads."""

    @property
    def names(self) -> tuple[str, ...]:
        """The kernels' names in `osd.kernels.cpu.entries`."""
        return _NAMES.get(self.dtype, _FEW_NAMES)

    @property
    def label(self) -> str:
        """A name for files and for the command line, such as 'bfloat16-threaded'."""
        return f"{str(self.dtype).removeprefix('torch.')}-{'threaded' if self.is_threaded else 'alone'}"

    @classmethod
    def of_label(cls, label: str) -> KernelSet:
        """The kernel set of a `label`."""
        name, threads = label.split("-")
        return cls({"bfloat16": torch.bfloat16, "float32": torch.float32}[name], threads == "threaded")


def samples(name: str, kernels: KernelSet) -> Iterator[tuple[Any, ...]]:
    """Sample arguments for each combination of types with which a kernel is called; their values do not matter."""
    stored = np.dtype(np.uint16 if kernels.dtype == torch.bfloat16 else np.float32)  # uint16: bfloat16's bits
    counters = (_of(np.int64, 2),)
    threads = (1,) if kernels.is_threaded else ()
    rows_RH, stack = _of(stored, 2), _stack(stored)
    if name == "pass":
        yield stack, Span(NONE, NONE, NONE, 1), rows_RH, rows_RH, _of(stored, 1), *counters, *threads
    elif name == "chain":
        known = Known(_of(np.int64, 2), _of(stored, 3), NONE, NONE, NONE, NONE, 1)
        choice = Choice(_of(np.int64, 2), _of(np.bool_, 1), _of(np.float32, 2), _of(np.float32, 3))
        chain = Chain(rows_RH, _of(np.float32, 2), 0, 0, NONE)
        yield stack, chain, known, choice, _shapes(), _of(stored, 1), *counters, *threads
    elif name == "project":
        yield 0, 0, rows_RH, rows_RH, *counters, *threads
    elif name == "project_and_rank":
        yield 0, 0, rows_RH, rows_RH, ranking_at(NONE, NONE, 1), *counters, *threads
    elif name == "rank":
        yield rows_RH, ranking_at(NONE, NONE, 1), *counters, *threads
    elif name == "judge":
        table, probs = _of(np.int64, 2), _of(np.float32, 3)
        trial = Trial(NONE, 1, table, NONE, table, probs, _of(np.float32, 2), table, True, True)
        yield rows_RH, trial, _shapes(), *counters, *threads
    elif name == "norm":
        # The output is half of longer rows: contiguous for one row, not for several, and thus of two numba types.
        for halves_RH in (np.empty((1, 4), stored)[:, :2], np.empty((2, 4), stored)[:, :2]):
            yield rows_RH, _of(np.float32, 1), 0.0, halves_RH


def _of(kind: Any, num_dimensions: int) -> Array:
    return np.empty((0,) * num_dimensions, kind)


def _shapes() -> Shapes:
    floats: Array = _of(np.float32, 1)
    return Shapes(floats, floats, NONE, floats)


def _stack(stored: np.dtype[Any]) -> Stack:
    addresses, floats, table, words = NONE, _of(np.float32, 1), _of(np.float32, 2), _of(np.uint32, 6)
    one, tables = np.float32(1), _of(np.float32, 3)
    matrices = (addresses, addresses, addresses, addresses)
    return Stack(*matrices, 0, tables, tables, floats, one, table, table, one, NONE, 1, 1, 1, 1, words, words)
