"""Whether an engine waits for its kernels to be compiled, or starts without them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from osd.assembly.kernels import backend_for, prepare_backend
from osd.config.target import TargetConfig
from osd.kernels.cpu import kernels as door
from osd.kernels.cpu.backend.backend import CpuBackend
from osd.kernels.cpu.compiling import store
from osd.kernels.cpu.compiling.signatures import KernelSet
from osd.kernels.reference.backend import TorchBackend
from osd.records.errors import OsdError
from tests.kit.fake_build import FakeBuild

pytestmark = pytest.mark.skipif(door.kernels() is None, reason="numba is not installed")
_INT4 = TargetConfig(dtype="int4", device="cpu", threads=1)


@pytest.fixture(autouse=True)
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "is_built", lambda kernels: False)
    monkeypatch.setattr("osd.assembly.kernels.Build", FakeBuild)


def test_int4_waits_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It cannot be served without kernels."""
    told: list[str] = []
    loaded: list[KernelSet] = []
    monkeypatch.setattr("osd.assembly.kernels.load", loaded.append)
    assert prepare_backend(_INT4, tmp_path, may_serve_without=True, on_progress=told.append).build is None
    assert told == ["1 of 7", "loading compiled kernels"]
    assert loaded == [KernelSet(torch.bfloat16, is_threaded=False)]


def test_int4_is_refused_where_they_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("osd.assembly.kernels.Build", partial(FakeBuild, fails=True))
    with pytest.raises(OsdError, match="int4 needs compiled kernels: no compiler"):
        prepare_backend(_INT4, tmp_path, may_serve_without=True)


def test_other_types_start_without_them(tmp_path: Path) -> None:
    target = TargetConfig(dtype="float32", device="cpu", threads=1)
    prepared = prepare_backend(target, tmp_path, may_serve_without=True)
    assert isinstance(prepared.backend, TorchBackend) and prepared.build is not None


def test_kernels_that_cannot_be_loaded_leave_the_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(these: KernelSet) -> None:
        raise OsdError("a torn file")

    monkeypatch.setattr(store, "is_built", lambda kernels: True)
    monkeypatch.setattr("osd.assembly.kernels.load", broken)
    target = TargetConfig(dtype="float32", device="cpu", threads=1)
    prepared = prepare_backend(target, tmp_path, may_serve_without=True)
    assert isinstance(prepared.backend, TorchBackend) and prepared.build is None
    assert "decoding will be slower: a torn file" in caplog.text


def test_where_numba_is_missing_the_reference_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(backend_for(torch.device("cpu")), CpuBackend)
    monkeypatch.setattr("osd.assembly.kernels.kernels", lambda: None)
    assert isinstance(backend_for(torch.device("cpu")), TorchBackend)
