"""The CPU's instruction sets, and the line that tells the operator how a target's weights are processed."""

from __future__ import annotations

import platform
from functools import cache
from typing import NamedTuple

import torch

from osd.records.errors import reason


class Cpu(NamedTuple):
    """The properties of a CPU that determine dtypes."""

    instructions: str
    """The widest instruction set in use: `AVX2`, `AVX-512`, `AVX512-BF16` or `AMX`; or else the machine's name."""
    multiplies_bfloat16: bool
    """Whether torch has bfloat16 instructions here; without them bfloat16 is slower than float32 in torch."""
    has_kernels: bool
    """Whether compiled kernels run here; they widen bfloat16 in registers where it has no instructions."""


def torch_multiplies_bfloat16() -> bool:
    """See `Cpu.multiplies_bfloat16`; respects `ONEDNN_MAX_CPU_ISA`."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def this_cpu() -> Cpu:
    """This machine's CPU, or the one that numba is set to compile for."""
    multiplies_bfloat16 = torch_multiplies_bfloat16()
    machine = platform.machine()
    try:
        from osd.kernels.cpu.products.amx import HAS_AMX
        from osd.kernels.cpu.products.blocking import BLOCKING
    except (ImportError, RuntimeError):  # numba is not installed, or incompatible with this numpy
        return Cpu(machine, multiplies_bfloat16, has_kernels=False)
    is_x86 = machine.lower() in ("x86_64", "amd64")
    kind = ("AMX" if HAS_AMX else BLOCKING.name) if is_x86 else machine
    return Cpu(kind, multiplies_bfloat16, has_kernels=True)


def describe(
    device: torch.device,
    dtype: torch.dtype,
    *,
    is_compiled: bool = False,
    is_int4: bool = False,
    cpu: Cpu | None = None,
) -> str:
    """How passes are computed, such as `CPU: AVX2, bfloat16 weights widened in registers`.

    Args:
        device: the model's.
        dtype: the model's.
        is_compiled: by compiled kernels rather than torch's operations.
        is_int4: with the layers' weights quantised to four bits.
        cpu: the CPU; None: this machine's.
    """
    weights = f"{str(dtype).removeprefix('torch.')} weights"
    if device.type != "cpu":
        return f"{_name_of(device)}: {weights}"
    cpu = cpu or this_cpu()
    if is_int4:
        weights = "int4 layers, the rest in bfloat16"
    if not is_compiled:
        how = "by torch's operations"
    elif dtype != torch.bfloat16:
        how = "by compiled kernels"
    else:
        by_instruction = cpu.instructions in ("AVX512-BF16", "AMX")
        how = "multiplied as they are" if by_instruction else "widened in registers"
    return f"CPU: {cpu.instructions}, {weights} {how}"


def _name_of(device: torch.device) -> str:
    try:
        return f"GPU: {torch.cuda.get_device_name(device)}"
    except (AssertionError, RuntimeError, ValueError) as error:  # a device other than CUDA
        return f"{device.type} ({reason(error)})"
