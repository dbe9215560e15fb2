"""`osd bench conversation`: every turn contains the ones before, with the server's own answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.kit.cli_kit import the_error
from tests.unit.serving.test_bench import plain_server

pytestmark = pytest.mark.usefixtures("plain_environment")
_USAGE = {
    "prompt_tokens": 40,
    "completion_tokens": 2,
    "total_tokens": 42,
    "prompt_tokens_details": {"cached_tokens": 30},
}


def test_it_asks_turn_after_turn(osd: Any) -> None:
    asked: list[dict[str, Any]] = []
    with plain_server(asked, {"usage": _USAGE}) as url:
        flags = ("--clients", "1,2", "--turns", 3, "--conversations", 2, "--max-tokens", 8)
        status, out, err = osd("bench", "conversation", "--base-url", url, *flags)
    assert status == 0, err
    report = json.loads(out)
    assert list(report["loads"]) == ["1 client", "2 clients"]
    for turns in report["loads"].values():
        assert [(turn["prompt_tokens"], turn["cached_tokens"]) for turn in turns] == [(40, 30)] * 3
        assert all(turn["ttft_p50_ms"] > 0 and turn["tpot_p50_ms"] > 0 for turn in turns)
    first, second, third = (body["messages"] for body in asked[1:4])
    assert second[:2] == [*first, {"role": "assistant", "content": "Hello you"}] and len(second) == 3
    assert third[:4] == [*second, {"role": "assistant", "content": "Hello you"}] and len(third) == 5
    beginnings = [body["messages"][0]["content"] for body in asked[1:] if len(body["messages"]) == 1]
    assert len(set(beginnings)) == len(beginnings) == 4, "a server may not have read a conversation before"


def test_a_turn_that_is_refused_ends_it(osd: Any) -> None:
    with plain_server([], {}, refuses=10**9) as url:
        error = the_error(osd("bench", "conversation", "--base-url", url, "--turns", 2))
    assert error.startswith("turn 1 was not answered (") and "not now" in error and "--turns" in error


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--turns", "17"), "--turns between 1 and 16"),
        (("--conversations", "9"), "--clients times --conversations"),
        (("--clients", "x"), "--clients takes numbers"),
    ],
)
def test_loads_that_cannot_be(osd: Any, flags: tuple[str, ...], named: str) -> None:
    assert named in the_error(osd("bench", "conversation", *flags))


def test_no_server(osd: Any) -> None:
    assert "--base-url" in the_error(osd("bench", "conversation", "--base-url", "http://127.0.0.1:9"))
