"""The compiled functions, loaded once per process, on as many threads as torch may use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osd.kernels.cpu.arguments import (
    CHAIN_PHASES,
    COUNTERS,
    Array,
    Chain,
    Choice,
    Known,
    Ranking,
    Shapes,
    Span,
    Stack,
    Trial,
    chain_elements,
)
from osd.kernels.cpu.arrays import array
from osd.kernels.cpu.compiling.signatures import KernelSet, samples
from osd.kernels.cpu.compiling.store import stored_entries
from osd.machine.arrays import aligned
from osd.records.errors import OsdError, reason

_log = logging.getLogger(__name__)


class Kernels:
    """Calls the functions of `osd.kernels.cpu.entries`. Settings of numba's threads apply to the calling thread."""

    def __init__(self) -> None:
        import numba

        self._set_num_threads = numba.set_num_threads
        self._told = threading.local()
        self._most_threads = most_threads(numba)
        self._entries = entries = stored_entries()
        self._pass, self._chain, self._project = (entries[name] for name in ("pass", "chain", "project"))
        self._project_and_rank = entries["project_and_rank"]
        self._rank, self._judge, [self._norm] = (entries[name] for name in ("rank", "judge", "norm"))
        if self._most_threads > 1:
            num_threads = torch.get_num_threads()
            numba.set_num_threads(self._most_threads)
            torch.set_num_threads(num_threads)  # restored, since numba's start sets OpenMP's number to all cores

    def load(self, these: KernelSet) -> None:
        """Load a set of kernels. Those that are not stored are compiled, which takes minutes."""
        from numba import typeof

        for name in these.names:
            entry = self._entries[name][-1 if these.is_threaded else 0]
            for arguments in samples(name, these):
                entry.compile(tuple(map(typeof, arguments)))  # type: ignore[attr-defined]  # a dispatcher of numba's

    def run_pass(self, stack: Stack, span: Span, x_RH: Array, normed_RH: Array) -> None:
        """Run all layers, which overwrite `x_RH`, and the norm after them."""
        scratch_E = aligned((len(x_RH) * stack.num_elements,), x_RH.dtype)
        self._run(self._pass, stack.num_phases, stack, span, x_RH, normed_RH, scratch_E)

    def run_chain(self, stack: Stack, chain: Chain, known: Known, choice: Choice, shapes: Shapes) -> None:
        """Run all steps of a drafter's round."""
        scratch_E = aligned((chain_elements(stack, chain, known),), chain.embedding_VH.dtype)
        num_phases = len(choice.ids_KB) * (stack.num_phases + CHAIN_PHASES)
        self._run(self._chain, num_phases, stack, chain, known, choice, shapes, scratch_E)

    def project(self, tiles: Tensor, bits: int, x_RI: Tensor, out_RO: Tensor) -> None:
        """Compute `x @ weight.T + bias`; `bits` of a quantised weight, or 0."""
        self._run(self._project, 1, tiles.data_ptr(), bits, array(x_RI), array(out_RO))

    def project_and_rank(self, tiles: Tensor, bits: int, x_RI: Array, out_RO: Array, ranking: Ranking) -> None:
        """Compute a product in bfloat16, and answer a query to its result."""
        self._run(self._project_and_rank, 2, tiles.data_ptr(), bits, x_RI, out_RO, ranking)

    def rank(self, logits_RV: Array, ranking: Ranking) -> None:
        """Find the K largest logits of some rows, in bfloat16."""
        self._run(self._rank, 1, logits_RV, ranking)

    def judge(self, logits_RV: Array, trial: Trial, shapes: Shapes) -> None:
        """Compute verdicts on sampled rows' proposals."""
        self._run(self._judge, 1, logits_RV, trial, shapes)

    def norm(self, x_RH: Tensor, weight_H: Array, eps: float, out_RH: Tensor) -> None:
        """Compute the RMS norm of each row; the weight is float32."""
        self._norm(array(x_RH), weight_H, eps, array(out_RH))

    def _run(self, alone_and_together: Sequence[Any], num_phases: int, *args: object) -> None:
        counters = np.zeros((num_phases, COUNTERS), np.int64)
        alone, together = alone_and_together
        num_threads = min(torch.get_num_threads(), self._most_threads)
        if num_threads == 1:
            alone(*args, counters)
        else:
            if getattr(self._told, "num_threads", 0) != num_threads:
                self._set_num_threads(num_threads)
                self._told.num_threads = num_threads
            together(*args, counters, num_threads)


@cache
def kernels() -> Kernels | None:
    """This process's compiled functions; None where numba does not work (the log says why)."""
    try:
        return Kernels()
    except (ImportError, RuntimeError, OSError) as error:  # not installed, incompatible with numpy, or no cache folder
        if isinstance(error, ImportError) and (error.name or "").startswith("osd."):
            raise  # a fault of ours, which tests that are skipped without numba would hide
        _log.warning("decoding will be slower: numba cannot be used (%s)", reason(error))
        return None


def load(these: KernelSet) -> Kernels:
    """Load compiled kernels ahead of their first call.

    Raises:
        OsdError: they cannot be loaded.
    """
    found = kernels()
    if found is None:
        raise OsdError("the kernels for this CPU cannot be loaded; the log says why")
    found.load(these)
    return found


def most_threads(numba: Any) -> int:
    """The number of threads that kernels may use, which also decides whether threaded kernels are used.

    With numba's OpenMP layer the threads are torch's own. They wait spinning, so separate ones would compete for cores.
    """
    try:
        import_module("numba.np.ufunc.omppool")
    except ImportError:
        return 1
    numba.config.THREADING_LAYER = "omp"
    return int(numba.config.NUMBA_NUM_THREADS)
