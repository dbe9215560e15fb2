"""Conversations go back to their engine; full engines refuse, and say when to come again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.e2e.cluster.conftest import Fleet

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]
_BLOCK_TOKENS = 32
"""A prefix counts in whole blocks."""


class _Conversation:
    """Its tokens are bytes; each turn's prompt is what was said so far, and a word more."""

    def __init__(self, client: httpx.Client, model: str, opening: str) -> None:
        self._client, self._model = client, model
        self._said = [ord(letter) % 256 for letter in opening]

    def turn(self) -> bool:
        """Whether the engine had read the former turns already."""
        former = len(self._said)
        self._said += [number % 200 for number in range(40)]
        asked = {"model": self._model, "prompt": self._said, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        answer = self._client.post("/v1/completions", json=asked).raise_for_status().json()
        reused = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return bool(reused >= former // _BLOCK_TOKENS * _BLOCK_TOKENS)


def test_a_conversation_goes_back_to_its_engine(fleet: Fleet) -> None:
    """One replica of the ingress: several hear of each other's queries a second or two later only."""
    args = {**fleet.args, "cluster": {**fleet.args["cluster"], "num_ingress": 1}}
    try:
        fleet.cluster.do("deploy", args=args)
        fleet.cluster.running("ingress", 1)
        with httpx.Client(base_url=fleet.cluster.url, timeout=120) as client:
            openings = [f"{name} begins: " * 8 for name in ("one", "two", "three", "four")]
            conversations = [_Conversation(client, fleet.model, opening) for opening in openings]
            first = [conversation.turn() for conversation in conversations]
            later = [conversation.turn() for _ in range(5) for conversation in conversations]
    finally:
        fleet.cluster.do("deploy", args=fleet.args)
    assert not any(first) and all(later)


def test_full_engines_refuse_and_say_when_to_come_again(fleet: Fleet) -> None:
    args = {**fleet.args, "engine": {**fleet.args["engine"], "max_slots": 1, "max_waiting": 1}}
    try:
        fleet.cluster.do("deploy", args=args)
        fleet.cluster.running("engine", 2)
        asked = {"model": fleet.model, "prompt": "the sea is", "max_tokens": 300, "temperature": 0, "ignore_eos": True}
        with httpx.Client(base_url=fleet.cluster.url, timeout=120) as client, ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: client.post("/v1/completions", json=asked), range(12)))
    finally:
        fleet.cluster.do("deploy", args=fleet.args)
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(served) + len(refused) == 12
    assert len(served) >= 4 and refused, "two engines hold two queries each"
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {answer.json()["choices"][0]["text"] for answer in served} == {fleet.expected["the sea is"]}
