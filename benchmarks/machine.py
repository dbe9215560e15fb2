"""Describes the machine on which a figure was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def describe_machine() -> dict[str, object]:
    """Processor, cores, GPU if any, versions and commit."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if torch.cuda.is_available() else {}
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        **gpu,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "osd": _own_version(),
        "commit": commit.stdout.strip() or "unknown",
    }


def _own_version() -> str:
    try:
        return version("osd")
    except PackageNotFoundError:  # an uninstalled checkout
        return "not installed"


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes read plus bytes written per second, for a copy much larger than any cache; the best of five."""
    # Larger on a GPU, where copying a quarter of a gigabyte takes less time than the host needs to measure it.
    source = torch.ones(1 << (31 if device.type == "cuda" else 28), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    wait_for(device)
    best_s = float("inf")
    for _ in range(5):
        started_s = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        best_s = min(best_s, time.perf_counter() - started_s)
    return 2 * source.numel() / best_s


def wait_for(device: torch.device) -> None:
    """Wait until the device has finished its queued work; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
