"""`osd bench serve`, against osd itself and against a plain server that only speaks OpenAI's API."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from osd.config.settings import load_config
from serving.app import create_app
from tests.kit.cli_kit import the_error
from tests.kit.http_server import serve
from tests.kit.local_client import local_client
from tests.kit.waiting import wait_for

pytestmark = pytest.mark.usefixtures("plain_environment")
NOT_TOLD = ("tokens_per_s", "tpot_p50_ms", "queue_p95_ms", "acceptance_rate", "acceptance_length")


@contextmanager
def plain_server(asked: list[dict[str, Any]], last: dict[str, Any], *, refuses: int = 0) -> Iterator[str]:
    """A server that says "Hello world"; `last` is what it sends besides, and it refuses its first queries."""
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "plain", "object": "model", "created": 0, "owned_by": "nobody"}]}

    @app.post("/v1/chat/completions")
    def chat(body: dict[str, Any]) -> Response:
        asked.append(body)
        if len(asked) <= refuses:
            return JSONResponse({"error": {"message": "not now"}}, status_code=503)
        head = {"id": "a", "object": "chat.completion.chunk", "created": 0, "model": "plain"}
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, {"content": "Hello"}, {"content": " you"}]
        events = [{**head, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        frames = [f"data: {json.dumps(event)}\n\n" for event in (*events, {**head, "choices": [], **last})]
        return Response("".join([*frames, "data: [DONE]\n\n"]), media_type="text/event-stream")

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started, "uvicorn to start")
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()


def reported(result: tuple[int, str, str]) -> dict[str, Any]:
    status, out, err = result
    assert status == 0, err
    assert "under load" in err and out.count("\n") == 1
    report: dict[str, Any] = json.loads(out)
    return report


def test_it_measures_osd(osd: Any) -> None:
    with (
        local_client() as (client, codec),
        serve(create_app(load_config(), client, codec, admin_token_sha256="")) as url,
    ):
        flags = ("--clients", "1,2", "--rates", "200", "--queries", 3, "--max-tokens", 8, "--body", '{"seed": 3}')
        report = reported(osd("bench", "serve", "--base-url", url, *flags))
    assert (report["model"], report["max_tokens"]) == ("tiny", 8)
    assert list(report["loads"]) == ["1 client", "2 clients", "200 queries/s"]
    for load in report["loads"].values():
        assert (load["queries"], load["failed"]) == (3, 0)
        assert all(load[name] > 0 for name in ("tokens_per_s", "ttft_p50_ms", "tpot_p99_ms", "acceptance_length"))
        assert 0 < load["ttft_p50_ms"] <= load["ttft_p99_ms"]
    warm_up, *measured = client.requests[1:]
    assert len(measured) == 9 and measured[0].prompt_ids != warm_up.prompt_ids  # every query asks something else
    assert {(one.params.max_tokens, one.params.seed, one.params.temperature) for one in measured} == {(8, 3, 0.0)}


def test_acceptance_is_that_of_all_answers(osd: Any) -> None:
    """The sums of what each answer says, not a mean of ratios."""
    told = {"rounds": 4, "proposed": 8, "accepted": 2, "committed": 6, "queue_ms": 3.0}
    with plain_server([], {"osd": told}) as url:
        [load] = reported(osd("bench", "serve", "--base-url", url, "--clients", 1, "--queries", 2))["loads"].values()
    assert (load["acceptance_rate"], load["acceptance_length"], load["queue_p50_ms"]) == (0.25, 1.5, 3.0)
    vllm = {"num_spec_steps": 5, "num_draft_tokens": 10, "num_accepted_draft_tokens": 4}
    with plain_server([], {"metrics": {"speculative_decoding": vllm}}) as url:
        [load] = reported(osd("bench", "serve", "--base-url", url, "--clients", 1, "--queries", 2))["loads"].values()
    assert (load["acceptance_rate"], load["acceptance_length"]) == (0.4, 1.8)


def test_what_a_server_does_not_tell_is_null(osd: Any, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n{"messages": [{"role": "user", "content": "two"}]}\n')
    with plain_server(asked, {}) as url:
        flags = ("--model", "mine", "--prompts", prompts, "--clients", 2, "--queries", 4, "--temperature", 0.5)
        [load] = reported(osd("bench", "serve", "--base-url", f"{url}/v1/", *flags))["loads"].values()
    assert load["queries"] == 4 and load["ttft_p50_ms"] > 0
    assert {load[name] for name in NOT_TOLD} == {None}
    assert sorted(body["messages"][0]["content"] for body in asked) == ["one"] * 3 + ["two"] * 3
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in asked} == {("mine", 0.5, 64)}


def test_queries_that_fail_are_counted_and_told(osd: Any) -> None:
    usage = {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
    with plain_server([], usage, refuses=4) as url:
        result = osd("bench", "serve", "--base-url", url, "--clients", 1, "--queries", 5)
    [load] = reported(result)["loads"].values()
    assert (load["queries"], load["failed"]) == (3, 2)  # the warm-up took two of the refusals
    assert "not now" in result[2]
    with plain_server([], {}, refuses=99) as url:
        error = the_error(osd("bench", "serve", "--base-url", url, "--clients", 1, "--queries", 2))
    assert error.startswith("every query failed: ") and "not now" in error


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--base-url", "http://127.0.0.1:9"), "no server answers at http://127.0.0.1:9"),
        (("--base-url", "nowhere"), "no server answers at nowhere"),
        (("--clients", "1,x"), "--clients takes numbers above 0"),
        (("--rates", "-1"), "--rates takes numbers above 0"),
        (("--queries", "0"), "--queries and --max-tokens must be at least 1"),
        (("--body", "[]"), "--body takes a JSON object"),
        (("--prompts", "none.jsonl"), "cannot read prompts from none.jsonl"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(osd: Any, flags: tuple[str, ...], why: str) -> None:
    assert the_error(osd("bench", "serve", *flags)).startswith(why)
