"""How much memory a device has, and how much of it is in use."""

from __future__ import annotations

from typing import NamedTuple

import psutil
import torch


class DeviceMemory(NamedTuple):
    """Bytes of a GPU's own memory, or of the machine's for a CPU."""

    used: int
    """By any process. Of a machine's: what a new process could not get without swapping."""
    total: int


def device_memory(device: torch.device) -> DeviceMemory:
    """The memory of a device now."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceMemory(total - free, total)
    machine = psutil.virtual_memory()
    return DeviceMemory(int(machine.total - machine.available), int(machine.total))
