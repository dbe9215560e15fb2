"""Tells which device of its node a process computes on."""

from __future__ import annotations

import torch


def device_id(device: torch.device) -> str:
    """`cpu`, or the GPU's unique id: its number depends on which GPUs the process may see."""
    if device.type != "cuda":
        return device.type
    return str(torch.cuda.get_device_properties(device).uuid)
