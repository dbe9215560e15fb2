"""A target that no device can hold is refused before it is loaded, with its size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from osd.loading import fit
from osd.loading.fit import check_fits, memory_bytes, num_weights
from osd.records.errors import OsdError

_CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of 3 Mi weights in two files."""
    save_file({"a": torch.zeros(1024, 1024, dtype=torch.bfloat16)}, tmp_path / "model-1.safetensors", {"format": "pt"})
    save_file({"b": torch.zeros(2, 1024, 1024)}, tmp_path / "model-2.safetensors")
    return tmp_path


def test_weights_are_counted_from_the_headers(folder: Path) -> None:
    assert num_weights(folder) == 3 << 20


@pytest.mark.parametrize(
    ("dtype_name", "dtype", "num_bytes", "says"),
    [
        ("auto", torch.float32, 12 << 20, r"0\.0 GiB in float32, .* choose --dtype int4, a smaller"),
        ("bfloat16", torch.bfloat16, 6 << 20, "in bfloat16"),
        ("int4", torch.bfloat16, 3 << 19, "in int4, .* choose a smaller target or a larger device"),
    ],
)
def test_weights_larger_than_the_device_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, dtype_name: str, dtype: torch.dtype, num_bytes: int, says: str
) -> None:
    monkeypatch.setattr(fit, "memory_bytes", lambda device: num_bytes)
    check_fits(folder, dtype_name, dtype, _CPU)
    monkeypatch.setattr(fit, "memory_bytes", lambda device: num_bytes - 1)
    with pytest.raises(OsdError, match=says):
        check_fits(folder, dtype_name, dtype, _CPU)


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    machine = memory_bytes(_CPU, limit)
    assert machine > 1 << 28
    limit.write_text("max\n")
    assert memory_bytes(_CPU, limit) == machine
    limit.write_text("1048576\n")
    assert memory_bytes(_CPU, limit) == 1 << 20
