"""Every back end that there is here, with each type that it computes in."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

import pytest
import torch

from osd.kernels.backend import Backend
from osd.kernels.cpu.backend.backend import CpuBackend
from osd.kernels.cpu.kernels import kernels
from osd.kernels.gpu.backend import GpuBackend
from tests.kit.backends import TORCH, captured_by
from tests.kit.fx_capture import run_at_once


class Case(NamedTuple):
    """A back end and a type; what is right is the reference's, in float64 where it is of numbers."""

    name: str
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    num_threads: int = 1

    @property
    def backend(self) -> Backend:
        """Made anew; what captures runs work at once, and overwrites its outputs as a graph does."""
        if self.name == "compiled":
            found = kernels()
            assert found is not None
            return CpuBackend(found)
        if self.name == "cuda":
            return GpuBackend.on(self.device)
        return TORCH if self.name == "torch" else captured_by(run_at_once, has_kernels=self.name == "interpreted")


_NO_NUMBA = [pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")]
_NO_TRITON = [pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")]
_ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
_CASES: list[tuple[Case, list[pytest.MarkDecorator]]] = [
    (Case("torch", torch.float32), []),
    (Case("torch", torch.bfloat16), []),
    (Case("compiled", torch.float32), _NO_NUMBA),
    (Case("compiled", torch.bfloat16), _NO_NUMBA),
    (Case("compiled", torch.bfloat16, num_threads=2), _NO_NUMBA),
    (Case("captured", torch.float32), []),
    (Case("interpreted", torch.float32), _NO_TRITON),
    (Case("interpreted", torch.float16), _NO_TRITON),  # the interpreter has no products of bfloat16
    (Case("cuda", torch.float32, torch.device("cuda")), _ON_GPU),
    (Case("cuda", torch.bfloat16, torch.device("cuda")), _ON_GPU),
]


def _id(case: Case) -> str:
    threads = ", two cores" if case.num_threads > 1 else ""
    return f"{case.name} {str(case.dtype).removeprefix('torch.')}{threads}"


@pytest.fixture(params=[pytest.param(case, marks=marks, id=_id(case)) for case, marks in _CASES])
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    if request.param.name == "interpreted":  # torch's operations would always be quicker than the interpreter
        monkeypatch.setattr("osd.kernels.gpu.graphs.quickest", lambda torchs, kernels, inputs: kernels)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param.num_threads)
    yield request.param
    torch.set_num_threads(before)
