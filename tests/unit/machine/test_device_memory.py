"""How much memory a device has, and how much is in use."""

from __future__ import annotations

import psutil
import pytest
import torch

from osd.machine.device_memory import device_memory


def test_a_cpus_memory_is_the_machines() -> None:
    used, total = device_memory(torch.device("cpu"))
    assert total == psutil.virtual_memory().total
    assert 0 < used < total


def test_a_gpus_memory_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {1: (30, 100)}[device.index])  # free, total
    assert device_memory(torch.device("cuda:1")) == (70, 100)
