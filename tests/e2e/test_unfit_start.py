"""`osd serve` as a program: with what it cannot serve it ends with one line, and it leaves nothing running.

What is refused before an actor is started is in `unit/serving/test_refused_start.py`. Here an engine's actor refuses
one thing; what else it refuses is in `unit/models/test_slot_model.py` and `unit/drafters/test_create.py`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.kit.osd_program import program, ready_url, started_by
from tests.kit.saved_models import save_llama
from tests.kit.waiting import wait_for

_START_S = 90.0
_STOP_S = 60.0
"""Three actors get five seconds each to save what they have, and Ray ends after them; this is for a slow machine."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_llama(folder / "tiny")
    return folder


@pytest.fixture
def tiny(models: Path) -> Path:
    return models / "tiny"


def assert_nothing_is_left(state_dir: Path, patience_s: float) -> None:
    wait_for(lambda: not started_by(state_dir), f"what runs in {state_dir} to end", patience_s)


def refusal(state_dir: Path, *arguments: object, within_s: float = 60.0) -> str:
    """The one line that it ends with, after lines of progress at most; nothing of it is left."""
    with program(state_dir, *arguments) as process:
        out, err = process.communicate(timeout=within_s)
        assert process.returncode == 2, (out, err)
        assert all(line.startswith("starting, ") for line in out.splitlines()), out
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert_nothing_is_left(state_dir, _STOP_S)
    return err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "model.safetensors is torn"),
        # It is loaded while the actors start.
        pytest.param("tokenizer.json", "cannot load the tokenizer", marks=pytest.mark.slow),
    ],
)
def test_a_torn_file(tiny: Path, tmp_path: Path, name: str, said: str) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    file = folder / name
    file.write_bytes(file.read_bytes()[:-1000])
    error = refusal(tmp_path, "--target", folder)
    assert said in error and str(folder) in error


@pytest.mark.ray
@pytest.mark.slow
def test_a_drafter_made_for_another_shape(tiny: Path, tmp_path: Path) -> None:
    from osd.io.weight_store import FileWeightStore
    from osd.kernels.reference.drafting.feature_net import FeatureConfig, FeatureNet
    from tests.kit.stores import weights_dir

    config = FeatureConfig.for_target(48, 257, 64, 8)
    net = FeatureNet(config)
    net.reset_parameters(0)
    store = FileWeightStore(weights_dir(tmp_path, "tiny", "feature"))
    store.publish(net.state_dict(), kind="feature", config=config.as_dict(), parent=None)
    error = refusal(tmp_path, "--target", tiny, "--no-train", within_s=_START_S)
    assert "hidden size 48" in error and "osd drafter init" in error


@pytest.mark.ray
@pytest.mark.redis
@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_stops_everything(tiny: Path, tmp_path: Path, number: signal.Signals, status: int) -> None:
    with program(tmp_path, "--target", tiny) as process:
        url = ready_url(process)
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        names = {one.name() for one in started_by(tmp_path)}
        assert any("redis" in name for name in names) and any("raylet" in name for name in names), names
        signalled_s = time.monotonic()
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as Ctrl-C in a terminal does
        else:
            process.send_signal(number)
        _, err = process.communicate(timeout=_STOP_S)
        assert process.returncode == status, err
        assert err == ""
        assert_nothing_is_left(tmp_path, _STOP_S - (time.monotonic() - signalled_s))


def wait_until_it_loads(process: subprocess.Popen[str], state_dir: Path) -> None:
    """Its engine's process is there."""

    def loads() -> bool:
        assert process.poll() is None, "it has ended"
        return any("EngineActor" in " ".join(one.cmdline()) for one in started_by(state_dir))

    wait_for(loads, "the engine's process", _START_S)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.redis
def test_a_signal_while_it_starts(tiny: Path, tmp_path: Path) -> None:
    with program(tmp_path, "--target", tiny) as process:
        wait_until_it_loads(process, tmp_path)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=_STOP_S)
        assert (process.returncode, err) == (0, "")
        assert_nothing_is_left(tmp_path, _STOP_S)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.redis
def test_nothing_outlives_a_server_that_is_killed_while_it_starts(tiny: Path, tmp_path: Path) -> None:
    with program(tmp_path, "--target", tiny) as process:
        wait_until_it_loads(process, tmp_path)
        process.kill()
        process.communicate(timeout=_STOP_S)
        assert_nothing_is_left(tmp_path, _STOP_S)
