"""Whether an engine waits for its kernels to be compiled, or starts without them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from osd.assembly.kernels import prepare_backend
from osd.config.settings import TargetConfig
from osd.kernels.cpu import kernels as door
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
