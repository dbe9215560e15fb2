"""The compiled functions, loaded once a process: on one core, or on as many as torch may use."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osd.models.compiled.arguments import Array, Scratch, Span, Stack

_log = logging.getLogger(__name__)


class Kernels:
    """See `osd.models.compiled.stack`. What numba is told here of threads holds for the calling one."""

    def __init__(self) -> None:
        import numba

        stack: Any = import_module("osd.models.compiled.stack")
        self._set_num_threads = numba.set_num_threads
        self._most_threads = _most_threads(numba)
        entries = stack.entries(_digest(Path(stack.__file__).parent))
        self._pass, self._project, self._highest = entries[:2], entries[2:4], entries[4:6]
        self._norm = entries[6]
        if self._most_threads > 1:
            num_threads, nothing = torch.get_num_threads(), np.zeros((0, 2), np.float32)
            self._project[1](0, nothing, nothing, 1)
            torch.set_num_threads(num_threads)  # when numba starts its threads, it sets OpenMP's number to all cores

    def run_pass(self, stack: Stack, span: Span, scratch: Scratch) -> None:
        """All layers and the norm after them."""
        self._run(self._pass, stack, span, scratch)

    def project(self, tiles: Tensor, x_RI: Tensor, out_RO: Tensor) -> None:
        """`x @ weight.T + bias`."""
        self._run(self._project, tiles.data_ptr(), array(x_RI), array(out_RO))

    def highest(self, logits_RV: Tensor, places_N: Array, ids_NK: Tensor, values_NK: Tensor, totals_N: Tensor) -> None:
        """The K greatest of some rows, bfloat16; and where there is a place for it, `log(sum(exp(row - greatest)))`."""
        self._run(self._highest, array(logits_RV), places_N, array(ids_NK), array(values_NK), array(totals_N))

    def norm(self, x_RH: Tensor, weight_H: Array, eps: float, out_RH: Tensor) -> None:
        """RMS norm by row; the weight in float32."""
        self._norm(array(x_RH), weight_H, eps, array(out_RH))

    def _run(self, alone_and_together: Sequence[Any], *args: object) -> None:
        alone, together = alone_and_together
        num_threads = min(torch.get_num_threads(), self._most_threads)
        if num_threads == 1:
            alone(*args)
        else:
            self._set_num_threads(num_threads)
            together(*args, num_threads)


@cache
def kernels() -> Kernels | None:
    """None where numba does not run; the log says why."""
    try:
        return Kernels()
    except (ImportError, RuntimeError) as error:  # not installed, too old for this numpy, nowhere to keep its cache
        _log.warning("decoding will be slower: numba cannot be used (%s)", str(error).splitlines()[0])
        return None


def array(tensor: Tensor) -> Array:
    """The same memory; numpy has no bfloat16, so that its bits stand for it."""
    viewed: Array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor.detach()).numpy()
    return viewed


def _digest(folder: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()


def _most_threads(numba: Any) -> int:
    """With numba's OpenMP layer the threads are torch's own, which wait spinning: others would have to share cores."""
    try:
        import_module("numba.np.ufunc.omppool")
    except ImportError:
        return 1
    numba.config.THREADING_LAYER = "omp"
    return int(numba.config.NUMBA_NUM_THREADS)
