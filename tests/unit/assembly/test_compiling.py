"""Kernels are compiled once, by whoever comes first, for the types that they are called with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from osd.assembly.kernels import early_build, kernels_for
from osd.kernels.cpu.compiling import build, store
from osd.kernels.cpu.compiling.building import Build
from osd.kernels.cpu.compiling.signatures import KernelSet, samples
from osd.kernels.cpu.kernels import Kernels, kernels
from osd.models.slot_model import SlotModel
from osd.records.proposal import DraftBatch
from osd.records.query import SamplingParams
from osd.verify.logits import SampledRows
from osd.verify.shaping import RowShaping
from osd.verify.top_logprobs import top_logprobs
from tests.kit.engine_kit import feature_drafter, make_target, tiny_llama
from tests.kit.saved_models import save_llama

pytestmark = pytest.mark.skipif(kernels() is None, reason="numba is not installed")

_FLOATS = KernelSet(torch.float32, is_threaded=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where nothing is compiled yet."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def compiled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compiled, in order; it takes no time here."""
    names: list[str] = []

    def note(these: KernelSet, name: str) -> None:
        names.append(name)
        store.marker(these, name).touch()

    monkeypatch.setattr(build, "compile_one", note)
    return names


def test_labels_say_which_kernels() -> None:
    for these in (_FLOATS, KernelSet(torch.bfloat16, is_threaded=True)):
        assert KernelSet.of_label(these.label) == these
    assert _FLOATS.label == "float32-alone"


def test_each_is_compiled_once(compiled: list[str]) -> None:
    assert store.num_built(_FLOATS) == 0
    build.build(_FLOATS)
    assert sorted(compiled) == sorted(_FLOATS.names)
    assert store.is_built(_FLOATS)
    build.build(_FLOATS)
    assert len(compiled) == len(_FLOATS.names)
    assert not store.is_built(KernelSet(torch.float32, is_threaded=True))  # which are others


def test_two_share_the_work_and_wait_for_one_another(compiled: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is held up in one kernel until the second has compiled all others."""
    quick, others_are_done = build.compile_one, threading.Event()

    def slow(these: KernelSet, name: str) -> None:
        if name == "pass":
            assert others_are_done.wait(30)
        quick(these, name)
        if len(compiled) == len(_FLOATS.names) - 1:
            others_are_done.set()

    monkeypatch.setattr(build, "compile_one", slow)
    both = [threading.Thread(target=build.build, args=(_FLOATS,)) for _ in "ab"]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
        assert not one.is_alive()
    assert compiled[-1] == "pass"
    assert sorted(compiled) == sorted(_FLOATS.names)


def test_what_a_killed_process_was_compiling_is_compiled_by_the_next(compiled: list[str], folder: Path) -> None:
    code = """
import sys, time
from osd.kernels.cpu.compiling import store
with store.lock("pass", wait=True):
    print("locked", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "locked\n"
        with store.lock("pass", wait=False) as is_ours:
            assert not is_ours
        killed.send_signal(signal.SIGKILL)
    build.build(_FLOATS)
    assert sorted(compiled) == sorted(_FLOATS.names)


def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path) -> None:
    """It was told of a parent that it does not have."""
    command = [sys.executable, "-m", "osd.kernels.cpu.compiling.build", _FLOATS.label, "1"]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    assert subprocess.run(command, env=environment, timeout=120, check=False).returncode == 1
    assert not list(tmp_path.glob("*/*.done"))


def test_the_process_removes_what_older_sources_left(folder: Path) -> None:
    for name in _FLOATS.names:
        store.marker(_FLOATS, name).parent.mkdir(exist_ok=True)
        store.marker(_FLOATS, name).touch()
    used = store.marker(_FLOATS, "pass").parent
    for number in range(10):
        old = folder / f"{number:024x}"
        old.mkdir()
        os.utime(old, (1e9 + number, 1e9 + number))
    built = Build(_FLOATS)
    try:
        assert built.wait()
    finally:
        built.stop()
    assert {path.name for path in folder.iterdir()} == {used.name, *(f"{number:024x}" for number in range(3, 10))}


@pytest.mark.slow
def test_a_process_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(file))
    failing = Build(_FLOATS)
    try:
        with pytest.raises(Exception, match="were not compiled: NotADirectoryError"):
            failing.wait()
    finally:
        failing.stop()


def test_only_a_first_start_begins_early(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from osd.config.target import TargetConfig

    started: list[KernelSet] = []

    class Noted:
        def __init__(self, these: KernelSet) -> None:
            started.append(these)

        def stop(self) -> None:
            started.clear()

    monkeypatch.setattr("osd.assembly.kernels.Build", Noted)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    target = TargetConfig(dtype="float32", device="cpu", threads=1)
    with early_build(target):
        assert started == [_FLOATS]
    assert not started
    folder = save_llama(tmp_path / "float32")
    with early_build(TargetConfig(model=str(folder), device="cpu", threads=1)):
        assert started == [_FLOATS], "those of the type that this folder is stored in"
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pass.float32-alone.done").touch()
    with early_build(target):
        assert not started


@pytest.mark.parametrize("hinders", ["no OpenMP", "NUMBA_NUM_THREADS=1"])
def test_what_is_compiled_is_what_is_called_where_there_is_one_thread(
    monkeypatch: pytest.MonkeyPatch, hinders: str
) -> None:
    """Else the kernels for one thread would be compiled when they are first called."""
    import numba

    from osd.config.target import TargetConfig
    from osd.kernels.cpu import kernels as door

    def missing(name: str) -> None:
        raise ImportError(name)

    target = TargetConfig(dtype="float32", device="cpu", threads=2)
    monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 2)
    assert kernels_for(target) == KernelSet(torch.float32, is_threaded=True)
    if hinders == "no OpenMP":
        monkeypatch.setattr(door, "import_module", missing)
    else:
        monkeypatch.setattr(numba.config, "NUMBA_NUM_THREADS", 1)
    assert kernels_for(target) == _FLOATS


def test_a_folder_is_named_by_all_that_is_compiled() -> None:
    entries = Path(build.__file__).parents[1] / "entries.py"
    names = {path.name for path in store._compiled_from(entries)}
    assert {"entries.py", "amx.py", "bits.py", "token_rule.py", "shaping.py", "tile_codes.py"} <= names
    assert "kernels.py" not in names  # it only calls them


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[tuple[str, Any]]]:
    """Names and argument types of all kernels that are called."""
    from numba import typeof

    found = kernels()
    assert found is not None
    names = {id(entry): name for name, entries in found._entries.items() for entry in entries}
    types: set[tuple[str, Any]] = set()
    run, norm = Kernels._run, found._norm

    def noted_run(self: Kernels, pair: tuple[Any, Any], num_phases: int, *arguments: Any) -> None:
        types.add((names[id(pair[0])], tuple(map(typeof, arguments))))
        run(self, pair, num_phases, *arguments)

    def noted_norm(*arguments: Any) -> None:
        types.add(("norm", tuple(map(typeof, arguments))))
        norm(*arguments)

    monkeypatch.setattr(Kernels, "_run", noted_run)
    monkeypatch.setattr(found, "_norm", noted_norm)
    yield types


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_are_compiled_for_the_types_that_they_are_called_with(
    called: set[tuple[str, Any]], dtype: torch.dtype
) -> None:
    """Else the first query that needs another one would wait for the compiler."""
    from numba import typeof

    torch.set_num_threads(1)
    these = KernelSet(dtype, is_threaded=False)
    _use_everything(dtype)
    expected = {
        (name, tuple(map(typeof, arguments))[: None if name == "norm" else -1])  # but for the counters
        for name in these.names
        for arguments in samples(name, these)
    }
    assert called <= expected
    assert {name for name, _ in called} == set(these.names)


def _use_everything(dtype: torch.dtype) -> None:
    """What an engine does with passes, rounds, logits and verdicts."""
    model = tiny_llama(0, vocab_tokens=40_000).to(dtype)
    target = make_target(model)
    assert isinstance(target.lm, SlotModel)
    output = target.read(0, torch.zeros(2, 3, dtype=torch.long), [0, 0])
    drafter = feature_drafter(target)
    for params in (SamplingParams(temperature=0.0), SamplingParams(temperature=1.0)):
        for row in range(2):
            drafter.reset_row(row)
        for num_tokens in (3, 20, 24):
            generators = [Random(row) for row in range(2)]
            known = (target.tokens_SL, target.hidden_SLH, [num_tokens] * 2, [2, 2], [params] * 2, generators)
            drafter.propose(DraftBatch(*known))
    assert output.logits is not None
    top_logprobs(output.logits, [[1], [2]], 4)
    looked_through = target.backend.logits(output.logits_BQV.clone())
    assert looked_through.best_BQ is not None
    output.logits.judge(SampledRows([0], [RowShaping.of(SamplingParams())], [0], [[0.5]], None, "token"))


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this system does not group sessions")
def test_a_process_that_compiles_steps_back_behind_other_sessions() -> None:
    """Niceness alone holds within a session only, and a server is in another one."""
    code = (
        "from pathlib import Path; from osd.kernels.cpu.compiling.build import step_back; step_back();"
        "print(Path('/proc/self/autogroup').read_text(), __import__('os').nice(0))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, start_new_session=True
    )
    assert told.stdout.split()[1:] == ["nice", "19", "19"]
