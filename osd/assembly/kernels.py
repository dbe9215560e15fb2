"""Chooses the back end of an engine (see `osd.kernels.backend`); the only place that does.

On a CPU it also loads the compiled kernels, or has them compiled by another process while torch serves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from osd.config.target import TargetConfig
from osd.kernels.backend import Backend
from osd.kernels.cpu.backend.backend import CpuBackend
from osd.kernels.cpu.backend.decoder import fits_kernels
from osd.kernels.cpu.compiling import store
from osd.kernels.cpu.compiling.building import Build
from osd.kernels.cpu.compiling.signatures import KernelSet
from osd.kernels.cpu.kernels import kernels, load, most_threads
from osd.kernels.gpu.backend import GpuBackend
from osd.kernels.reference.backend import TorchBackend
from osd.loading.causal_lm import choose_device, choose_dtype
from osd.loading.stored import LLAMA_IN_BFLOAT16, Stored, stored_in
from osd.models.target import Target
from osd.records.errors import OsdError, reason

_log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """The back end that an engine starts with."""

    backend: Backend
    build: Build | None
    """The running compilation of kernels that will replace the back end; None if the back end is final."""


def backend_for(device: torch.device) -> Backend:
    """The fastest back end for a device. Kernels that are not compiled yet are compiled by their first call."""
    if device.type == "cuda":
        return GpuBackend.on(device)
    found = kernels() if device.type == "cpu" else None
    return TorchBackend() if found is None else CpuBackend(found)


def load_backend(these: KernelSet) -> Backend:
    """The CPU back end with a set of kernels that are compiled already.

    Raises:
        OsdError: the kernels cannot be loaded.
    """
    return CpuBackend(load(these))


def num_threads(target: TargetConfig) -> int:
    """Number of threads of an engine's passes on a CPU; by default one per physical core."""
    return target.threads or psutil.cpu_count(logical=False) or 1


def kernels_for(target: TargetConfig, stored: Stored = LLAMA_IN_BFLOAT16) -> KernelSet | None:
    """The set of compiled kernels for a target; None if there are none for its device and dtype.

    Args:
        target: the target's settings.
        stored: dtype and architecture of the target's files; by default those of most models.

    Raises:
        OsdError: there is no such device, or it does not support the dtype.
    """
    device = choose_device(target.device)
    dtype = choose_dtype(target.dtype, device, stored)
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float32):
        return None
    return KernelSet(dtype, is_threaded=min(num_threads(target), _most_threads()) > 1)


def _most_threads() -> int:
    """The most threads that kernels can use; 1 if numba is not installed, which loading the kernels will report."""
    try:
        import numba
    except ImportError:
        return 1
    return most_threads(numba)


def _stored_as(target: TargetConfig) -> Stored:
    """Dtype and architecture of a target's files; those of most models if it is no folder (not read yet)."""
    folder = Path(target.model).expanduser()
    if not (folder / "config.json").is_file():
        return LLAMA_IN_BFLOAT16
    return stored_in(folder, trust_remote_code=target.trust_remote_code)


@contextmanager
def early_build(target: TargetConfig) -> Iterator[None]:
    """On the first start of all, compile kernels while the context runs; the engine's own build continues the work."""
    these = kernels_for(target, _stored_as(target)) if store.is_empty() else None
    build = None if these is None else Build(these)
    try:
        yield
    finally:
        if build is not None:
            build.stop()


def prepare_backend(
    target: TargetConfig,
    folder: Path,
    *,
    may_serve_without: bool,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Choose a back end so that no query waits for a compiler.

    Compiled kernels are loaded. Otherwise the torch back end serves until they are, or, if that is not allowed, this
    waits for them.

    Args:
        target: the target's settings; dtype `int4` requires compiled kernels.
        folder: the target's files.
        may_serve_without: whether the torch back end may serve meanwhile.
        on_progress: called with the share of kernels compiled, while this waits.

    Raises:
        OsdError: there is no such device, or the target requires kernels that cannot be compiled or loaded.
    """
    stored = stored_in(folder, trust_remote_code=target.trust_remote_code)
    device, these = choose_device(target.device), kernels_for(target, stored)
    if these is None:
        return Prepared(GpuBackend.on(device) if device.type == "cuda" else TorchBackend(), None)
    must_wait = target.dtype == "int4" or target.wait_for_kernels or not may_serve_without
    try:
        if not store.is_built(these):
            build = Build(these)
            if not must_wait:
                return Prepared(TorchBackend(), build)
            try:
                build.wait(on_progress)
            finally:
                build.stop()
        on_progress("loading compiled kernels")
        return Prepared(load_backend(these), None)
    except (ImportError, OSError, OsdError) as error:
        if target.dtype == "int4":
            raise OsdError(f"target.dtype int4 needs compiled kernels: {reason(error)}") from error
        _log.warning("decoding will be slower: %s", reason(error))
    return Prepared(TorchBackend(), None)


def awaits_kernels(target: Target) -> bool:
    """Whether compiled kernels, once there, will run this target's passes; if not, they run only the drafters'."""
    return target.lm.is_fused and fits_kernels(target.lm.model)
