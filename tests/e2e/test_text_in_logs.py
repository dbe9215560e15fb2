"""No log holds what clients ask or are answered: at level debug, of all processes, whatever fails.

The service logs JSON lines. Lines of text hold the same fields and no others (`tests/unit/machine/test_logs.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.kit.osd_program import program, ready_url, started_by
from tests.kit.saved_models import save_llama
from tests.kit.waiting import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.timeout(400)]
SECRET = "Zwolfhundert"
"""Is in every prompt, and in whatever a client sends in place of something else."""
SAID = f"The password of {SECRET} is swordfish"
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("completions", {"prompt": SAID}),
    ("completions", {"prompt": SAID, "stream": True, "logprobs": 2, "echo": True}),
    ("chat/completions", {"messages": [{"role": "user", "content": SAID}], "stream": True}),
    ("responses", {"input": SAID, "instructions": SAID}),
    ("messages", {"messages": [{"role": "user", "content": SAID}], "system": SAID}),
    ("chat/completions", {"messages": [{"role": "user", "content": SAID}], "response_format": {"type": "json_object"}}),
]
BAD: list[tuple[str, dict[str, Any]]] = [
    ("chat/completions", {"messages": [{"role": "user", "content": SAID}], "tools": [TOOL]}),
    ("completions", {"prompt": SAID * 400}),
    ("completions", {"prompt": SAID, "temperature": SAID}),
    ("completions", {"prompt": SAID, SECRET: 1}),
    ("completions", {"prompt": SAID, "guided_regex": f"({SECRET}"}),
    ("completions", {"prompt": SAID, "guided_json": {"type": SECRET}}),
    ("completions", {"prompt": SAID, "guided_grammar": f"root ::= {SECRET}"}),
    ("chat/completions", {"messages": [{"role": SECRET, "content": SAID}]}),
    ("chat/completions", {"messages": SAID}),
    ("responses", {"input": [{"type": SECRET}]}),
]


_TOKEN = "an admin token"
_ADMIN = {"Authorization": f"Bearer {_TOKEN}"}


def _ask(client: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    most = "max_output_tokens" if path == "responses" else "max_tokens"
    return client.post(f"/v1/{path}", json={"model": "tiny", most: 40, "temperature": 0, **body})


def _texts(value: Any) -> Iterator[str]:
    """Every string in JSON that holds an answer."""
    if isinstance(value, dict):
        for name in value.keys() & {"text", "content", "output", "choices", "message", "delta"}:
            yield from _texts(value[name])
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str):
        yield value


def _said(response: httpx.Response) -> str:
    """What the model said, of a whole answer or of a stream of events."""
    if response.headers["content-type"].startswith("application/json"):
        return "".join(_texts(response.json()))
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(chain.from_iterable(_texts(json.loads(event)) for event in events))


def _said_while_its_engine_dies(client: httpx.Client) -> str:
    """What a stream says whose engine is killed in the middle of it, and which goes on in the next one."""
    body = {"model": "tiny", "prompt": SAID, "max_tokens": 300, "stream": True, "ignore_eos": True}
    (engine,) = wait_for(lambda: client.get("/admin/api/engines", headers=_ADMIN).json(), "the engine's report")
    text, is_killed = "", False
    with client.stream("POST", "/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            text += "".join(_texts(json.loads(line.removeprefix("data: "))))
            if text and not is_killed:
                os.kill(engine["pid"], signal.SIGKILL)
                is_killed = True
    assert is_killed
    return text


def _has_learnt(client: httpx.Client) -> bool:
    status = client.get("/admin/api/status", headers=_ADMIN).json()
    return bool(status["trainer"] and status["trainer"]["replay_records"])


def _ray_logs(state_dir: Path) -> Path:
    """The folder in which this program's Ray keeps the output of its processes."""
    for process in started_by(state_dir):
        with suppress(psutil.Error):
            if found := re.search(r"--session[-_]dir[= ](\S+)", " ".join(process.cmdline())):
                return Path(found[1]) / "logs"
    raise AssertionError("no process of Ray names its session's folder")


def _pieces(text: str, size: int = 12) -> set[str]:
    """Every piece of so many characters, as it is and as JSON would write it; monotonous ones may be anywhere."""
    pieces = {text[at : at + size] for at in range(len(text) - size + 1)}
    telling = {piece for piece in pieces if len(set(piece)) >= size // 2}
    return telling | {json.dumps(piece, ensure_ascii=False)[1:-1] for piece in telling}


def _use(client: httpx.Client) -> list[str]:
    """Ask well and badly, with an engine that dies in the middle; returns what was answered."""
    answers = []
    for path, body in GOOD:
        response = _ask(client, path, body)
        assert response.status_code == 200, response.text
        answers.append(_said(response))
    with client.stream("POST", "/v1/completions", json={"model": "tiny", "prompt": SAID, "stream": True}) as cut:
        next(cut.iter_lines())
    assert [_ask(client, path, body).status_code for path, body in BAD] == [400] * len(BAD)
    torn = client.post("/v1/completions", content=json.dumps({"model": "tiny", "prompt": SAID})[:-4])
    assert torn.status_code == 400
    answers.append(_said_while_its_engine_dies(client))
    wait_for(lambda: _has_learnt(client), "the distiller to read outcomes")
    client.post("/admin/api/pause", headers=_ADMIN | {"X-Request-Id": "the-pause"}).raise_for_status()
    return answers


def test_no_log_holds_a_prompt_or_an_answer(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "tiny", context_tokens=1024)
    options = ["--target", model, "--dtype", "float32", "--threads", 1, "--log-level", "debug", "--log-format", "json"]
    options += ["--server.admin_token_sha256", hashlib.sha256(_TOKEN.encode()).hexdigest()]
    with program(tmp_path, *options) as process, ThreadPoolExecutor(2) as reading:
        url = ready_url(process)
        assert process.stdout is not None and process.stderr is not None
        printed = [reading.submit(stream.read) for stream in (process.stdout, process.stderr)]
        try:
            with httpx.Client(base_url=url, timeout=120) as client:
                answers = _use(client)
            ray_logs = _ray_logs(tmp_path)
        finally:
            process.terminate()
        of_terminal = [one.result(90) for one in printed]
    log = (tmp_path / "logs" / "osd.log").read_text()
    of_ray = [path.read_text(errors="replace") for path in ray_logs.rglob("*") if path.is_file()]
    assert "the-pause" in log and "audit: token" in log
    records = [json.loads(line) for line in log.splitlines()]
    assert {one["process"] for one in records} >= {"server", "engine"}
    assert of_ray and all(len(answer) >= 20 for answer in answers)
    whole = "\n".join([log, *of_terminal, *of_ray])
    assert SECRET not in whole and "swordfish" not in whole
    assert [piece for answer in answers for piece in _pieces(answer) if piece in whole] == []
