"""How many threads the engine computes with, also under Ray, which tells an actor's libraries to use one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from osd.assembly.engine import open_engine
from osd.config.settings import load_config
from tests.kit.saved_models import save_llama


@pytest.fixture(autouse=True)
def threads_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def open_with(tmp_path: Path, threads: int) -> None:
    target = {"model": str(save_llama(tmp_path / "tiny")), "threads": threads, "max_context_tokens": 64}
    open_engine(load_config(flags={"target": target, "state_dir": tmp_path / "state"}))


def test_no_number_means_all_physical_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 4 if logical else 2)
    torch.set_num_threads(1)
    open_with(tmp_path, 0)
    assert torch.get_num_threads() == 2


def test_a_number_is_taken(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    open_with(tmp_path, 2)
    assert torch.get_num_threads() == 2


def test_unknown_cores_mean_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: None)
    torch.set_num_threads(2)
    open_with(tmp_path, 0)
    assert torch.get_num_threads() == 1
