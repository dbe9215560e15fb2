"""Whether a target's weights fit the device, from the headers of its files."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open

from osd.records.errors import OsdError

_INT4_BYTES = 0.5
"""Bytes a weight without the scales, so a lower bound."""
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def check_fits(folder: Path, dtype_name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a target whose weights alone are larger than the memory of the device.

    Args:
        folder: the target's files.
        dtype_name: the setting `target.dtype`.
        dtype: the dtype that this setting selects.
        device: where the target is to run.

    Raises:
        OsdError: how large it is, and what to do.
    """
    num_bytes = int(num_weights(folder) * (_INT4_BYTES if dtype_name == "int4" else dtype.itemsize))
    has_bytes = memory_bytes(device)
    if num_bytes > has_bytes:
        type_name = "int4" if dtype_name == "int4" else str(dtype).removeprefix("torch.")
        smaller = "" if dtype_name == "int4" or device.type != "cpu" else "--dtype int4, "
        raise OsdError(
            f"the target's weights take {_gib(num_bytes)} in {type_name}, and the device {device} has "
            f"{_gib(has_bytes)}, but osd serves a target from one device; choose {smaller}a smaller target or a larger "
            "device"
        )


def num_weights(folder: Path) -> int:
    """Numbers in all safetensors files of a folder; weights that layers share count once. 0 for other formats."""
    return sum(_num_weights(path) for path in folder.glob("*.safetensors"))


def memory_bytes(device: torch.device, limit_file: Path = _CGROUP_LIMIT) -> int:
    """All memory of a device; of a CPU what this process may take, by its container's limit (in `limit_file`) too."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limit = limit_file.read_text().strip() if limit_file.exists() else "max"
    total = int(psutil.virtual_memory().total)
    return total if limit == "max" else min(total, int(limit))


def _num_weights(path: Path) -> int:
    try:
        with safe_open(path, framework="numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no dict)
    except (OSError, SafetensorError):
        return 0  # loading the model reports what is wrong


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
