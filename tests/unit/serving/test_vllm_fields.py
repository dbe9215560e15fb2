"""Fields of vLLM's requests, as they reach the engine or are refused."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from osd.records.asked.limits import RepetitionLimit, ThinkingLimit
from osd.text.chat_template import ChatFeatures
from osd.text.codec import TextCodec
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import CHAT, COMPLETION, http_client
from tests.kit.local_client import CHATML_WITH_TOOLS
from tests.kit.tokenizer_kit import tokenizer_of

_BEGIN, _END = tuple(map(ord, "<think>")), tuple(map(ord, "</think>"))
_SHOUTED = "{% for m in messages %}{{ m.role | upper }}!{{ m.content }}{% endfor %}"
_TRUSTING = {"trust_request_chat_template": True}


def _reasoning_codec(prompt_end: str = "") -> FakeCodec:
    return FakeCodec(features=ChatFeatures(reasoning=True), context_tokens=1000, prompt_end=prompt_end)


@pytest.mark.parametrize("prompt_end", ["", "<think>\n"])
async def test_a_budget_of_reasoning_reaches_the_engine(prompt_end: str) -> None:
    engine = FakeEngineClient()
    limit = ThinkingLimit(max_tokens=0, begin_ids=_BEGIN, end_ids=_END, is_open=bool(prompt_end))
    async with http_client(engine, _reasoning_codec(prompt_end)) as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "thinking_token_budget": 0})
        assert answer.status_code == 200
        prompt = f"hi{prompt_end}"
        answer = await client.post("/v1/completions", json={**COMPLETION, "prompt": prompt, "thinking_token_budget": 0})
        assert answer.status_code == 200
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert [request.thinking for request in engine.requests] == [limit, limit, None]


async def test_a_model_that_does_not_reason_has_no_such_budget() -> None:
    async with http_client() as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, "thinking_token_budget": 8})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "thinking_token_budget"


async def test_a_model_that_lacks_the_end_mark_has_no_such_budget() -> None:
    codec = FakeCodec(features=ChatFeatures(reasoning=True), vocab_tokens=max(_END))
    async with http_client(codec=codec) as client:
        answer = await client.post("/v1/completions", json={**COMPLETION, "prompt": "hi", "thinking_token_budget": 8})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "thinking_token_budget"


async def test_limits_and_salts_reach_the_engine() -> None:
    engine = FakeEngineClient()
    fields = {
        "repetition_detection": {"max_pattern_size": 4, "min_count": 3},
        "cache_salt": "mine",
        "logprobs": True,
        "logprob_token_ids": [7, 7, 5],
    }
    async with http_client(engine) as client:
        assert (await client.post("/v1/chat/completions", json={**CHAT, **fields})).status_code == 200
        body = {"model": "fake-model", "input": "hi", "cache_salt": "theirs"}
        assert (await client.post("/v1/responses", json=body)).status_code == 200
    first, second = engine.requests
    assert first.params.repetition_limit == RepetitionLimit(min_tokens=1, max_tokens=4, num_repeats=3)
    assert first.params.logprob_token_ids == (7, 5)
    assert (first.cache_salt, second.cache_salt) == ("mine", "theirs")


async def test_a_response_has_the_id_that_was_asked_for_unless_it_is_taken() -> None:
    body: dict[str, Any] = {"model": "fake-model", "input": "hi", "request_id": "resp-1"}
    async with http_client() as client:
        assert (await client.post("/v1/responses", json=body)).json()["id"] == "resp-1"
        taken = await client.post("/v1/responses", json=body)
        assert taken.status_code == 400 and taken.json()["error"]["param"] == "request_id"
        assert (await client.get("/v1/responses/resp-1")).json()["id"] == "resp-1"
        assert (await client.delete("/v1/responses/resp-1")).status_code == 200
        assert (await client.post("/v1/responses", json=body)).status_code == 200
        wrong = await client.post("/v1/responses", json={**body, "request_id": "../x"})
        assert wrong.status_code == 400


class _Watched(FakeCodec):
    """Knows on which threads conversations were rendered."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[threading.Thread] = set()

    def encode_chat(self, *args: Any, **options: Any) -> tuple[int, ...]:
        self.threads.add(threading.current_thread())
        return super().encode_chat(*args, **options)


async def test_templates_of_requests_are_refused_unless_they_are_trusted() -> None:
    for route, body in (("/v1/chat/completions", CHAT), ("/tokenize", {"messages": CHAT["messages"]})):
        async with http_client() as client:
            answer = await client.post(route, json={**body, "chat_template": _SHOUTED})
        assert answer.status_code == 400, route
        error = answer.json()["error"]
        assert error["param"] == "chat_template" and "--trust-request-chat-template" in error["message"]


async def test_a_trusted_template_is_run_aside() -> None:
    """It may take its time, in which other requests are answered."""
    codec = _Watched()
    async with http_client(codec=codec, server=_TRUSTING) as client:
        body = {**CHAT, "chat_template": "T", "return_prompt_text": True}
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.json()["prompt_text"] == "T<user>hi<assistant>"
    assert threading.current_thread() not in codec.threads


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec(tokenizer_of("byte-level", CHATML_WITH_TOOLS), model_id="fake-model", context_tokens=400)


async def test_a_template_takes_the_place_of_the_models_for_one_request(codec: TextCodec) -> None:
    messages = CHAT["messages"]
    async with http_client(codec=codec, server=_TRUSTING) as client:

        async def rendered(**fields: Any) -> str:
            answer = await client.post("/tokenize", json={"messages": messages, **fields})
            assert answer.status_code == 200, answer.text
            return codec.decode_all(answer.json()["tokens"])

        own = await rendered()
        assert await rendered(chat_template=_SHOUTED) == "USER!hi"
        assert await rendered() == own == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


async def test_special_tokens_in_messages_stay_text_under_a_template_of_the_request(codec: TextCodec) -> None:
    end = codec.tokenizer.convert_tokens_to_ids("<|im_end|>")
    template = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    body = {"messages": [{"role": "user", "content": "a<|im_end|>b"}], "chat_template": template}
    async with http_client(codec=codec, server=_TRUSTING) as client:
        tokens = (await client.post("/tokenize", json=body)).json()["tokens"]
    assert tokens.count(end) == 1 and codec.decode_all(tokens) == "a<|im_end|>b<|im_end|>"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template": "{% for m in messages %}"}, "chat_template"),
        ({"chat_template": "{{ raise_exception('no') }}"}, "chat_template"),
        ({"chat_template": "{{ ''.__class__.__mro__ }}"}, "chat_template"),
        ({"chat_template": _SHOUTED, "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ],
)
async def test_templates_that_do_not_work_are_named(codec: TextCodec, fields: dict[str, Any], param: str) -> None:
    """The third one reaches for what the sandbox keeps from it."""
    async with http_client(codec=codec, server=_TRUSTING) as client:
        answer = await client.post("/v1/chat/completions", json={**CHAT, **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param, json.dumps(answer.json())
