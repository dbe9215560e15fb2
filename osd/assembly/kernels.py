"""Which back end an engine computes with: chosen here, once. Compiled kernels are made sure of before it serves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from osd.config.settings import TargetConfig
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
    """What an engine computes with at its start."""

    backend: Backend
    build: Build | None
    """Compiles kernels, which are to take over once they are there; None where nothing is awaited."""


def backend_for(device: torch.device) -> Backend:
    """The fastest that there is on a device; compiled kernels that are not there yet are compiled when first called."""
    if device.type == "cuda":
        return GpuBackend.on(device)
    found = kernels() if device.type == "cpu" else None
    return TorchBackend() if found is None else CpuBackend(found)


def load_backend(these: KernelSet) -> Backend:
    """Of kernels that were compiled.

    Raises:
        OsdError: they cannot be loaded.
    """
    return CpuBackend(load(these))


def num_threads(target: TargetConfig) -> int:
    """How many threads an engine computes with on a CPU."""
    return target.threads or psutil.cpu_count(logical=False) or 1


def kernels_for(target: TargetConfig, stored: Stored = LLAMA_IN_BFLOAT16) -> KernelSet | None:
    """What an engine with this target calls; None: nothing, since there are no kernels for its device or type.

    Args:
        target: what is served.
        stored: how its weights are stored; by default as most are.

    Raises:
        OsdError: no such device, or it cannot have this type.
    """
    device = choose_device(target.device)
    dtype = choose_dtype(target.dtype, device, stored)
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float32):
        return None
    return KernelSet(dtype, is_threaded=min(num_threads(target), _most_threads()) > 1)


def _most_threads() -> int:
    """Of kernels; where numba is not installed, whoever needs them is told so later."""
    try:
        import numba
    except ImportError:
        return 1
    return most_threads(numba)


def _stored_as(model: str) -> Stored:
    """How a target that is a folder is stored; of others it is not known yet, and most are stored alike."""
    folder = Path(model).expanduser()
    return stored_in(folder) if (folder / "config.json").is_file() else LLAMA_IN_BFLOAT16


@contextmanager
def early_build(target: TargetConfig) -> Iterator[None]:
    """Where kernels were never compiled before, begin while a start does other things; the engine's build shares in."""
    these = kernels_for(target, _stored_as(target.model)) if store.is_empty() else None
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
    """See to it that no query waits for a compiler: kernels are loaded now, or take over once they are compiled.

    Args:
        target: what is served; `int4` needs them.
        folder: its model's.
        may_serve_without: start with torch's operations where the kernels are not compiled yet.
        on_progress: told how far they are, where they are waited for.

    Raises:
        OsdError: no such device; or the target needs kernels, and they cannot be had.
    """
    device, these = choose_device(target.device), kernels_for(target, stored_in(folder))
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
    """Whether compiled kernels are to take over this target's passes; else they only take over the drafters'."""
    return target.lm.is_fused and fits_kernels(target.lm.model)
