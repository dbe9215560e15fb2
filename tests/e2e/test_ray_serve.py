"""The application that `serving.ray_serve:build` declares, in a real Ray Serve on one node."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from osd.assembly.engine import open_engine
from osd.config.settings import load_config
from osd.records.query import SamplingParams
from tests.kit.saved_models import save_llama
from tests.kit.waiting import wait_for

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(280)]

_PROGRAM = """
import json, sys
import ray
from ray import serve
from serving.ray_serve import build
given = json.loads(sys.stdin.readline())
ray.init(address="local", include_dashboard=False, num_cpus=2, object_store_memory=80 << 20, logging_level="ERROR")
serve.start(http_options={"host": "127.0.0.1", "port": given["port"]})
for args in iter(lambda: json.loads(sys.stdin.readline()), None):
    serve.run(build(args), name="osd", route_prefix="/")
    print("up", flush=True)
serve.delete("osd")
print("deleted", flush=True)
sys.stdin.readline()
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture
def program() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        yield program
        if program.poll() is None:
            program.kill()


def _tell(program: subprocess.Popen[str], message: Any, answer: str) -> None:
    """Send one line, and wait for the line that says that it was done."""
    assert program.stdin is not None and program.stdout is not None
    program.stdin.write(json.dumps(message) + "\n")
    program.stdin.flush()
    if answer:
        assert any(line.strip() == answer for line in program.stdout), f"the program ended without {answer!r}"


def _drivers(program: subprocess.Popen[str]) -> list[psutil.Process]:
    """osd's Ray drivers among the descendants of the program."""
    descendants = psutil.Process(program.pid).children(recursive=True)
    return [process for process in descendants if "actors.driver" in process.cmdline()]


def test_serve_runs_the_application_and_stops_all_of_it(
    program: subprocess.Popen[str], tmp_path: Path, unused_tcp_port: int
) -> None:
    args: dict[str, Any] = {
        "state_dir": str(tmp_path / "state"),
        "target": {"model": str(save_llama(tmp_path / "tiny")), "dtype": "float32", "threads": 1},
        "engine": {"max_slots": 2},
        "drafter": {"vocab_tokens": 128},
    }
    args["target"]["max_context_tokens"] = 128
    _tell(program, {"port": unused_tcp_port}, "")
    _tell(program, args, "up")
    with httpx.Client(base_url=f"http://127.0.0.1:{unused_tcp_port}", timeout=60) as client:
        assert client.get("/ready").status_code == 200
        (model,) = client.get("/v1/models").json()["data"]
        asked = {"model": model["id"], "prompt": "the sea is", "max_tokens": 16, "temperature": 0}
        answer = client.post("/v1/completions", json=asked).json()
        refused = client.post("/v1/completions", json={**asked, "temperature": -1})
        metrics = client.get("/metrics").text
    assert refused.status_code == 400
    assert "osd_queries_total 1.0" in metrics and "osd_ready 1.0" in metrics
    reference = open_engine(load_config(flags={**args, "state_dir": tmp_path / "other"}))
    deltas = reference.generate(["the sea is"], SamplingParams(temperature=0.0, max_tokens=16))
    assert answer["choices"][0]["text"] == "".join(delta.text for delta in deltas)
    drivers = _drivers(program)
    assert len(drivers) == 1
    _tell(program, None, "deleted")
    wait_for(lambda: not any(driver.is_running() for driver in drivers), "the driver of the deleted application to end")
    _tell(program, None, "")
    assert program.wait(60) == 0
