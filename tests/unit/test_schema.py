from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from osd.types import SamplingParams
from serving.schema_chat import ChatRequest
from serving.schema_completions import CompletionRequest
from tests.fakes import FakeCodec, FakeEngineClient
from tests.http_client import CHAT, COMPLETION, http_client


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({**CHAT, **fields})


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({**COMPLETION, **fields})


def refused_field(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        chat(**fields)
    return ".".join(map(str, caught.value.errors()[0]["loc"]))


def test_defaults_are_the_engines() -> None:
    assert chat().sampling(max_tokens=128, logprobs=None, choice=0) == SamplingParams()


def test_sampling_fields_reach_the_engine() -> None:
    body = chat(
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        presence_penalty=1,
        frequency_penalty=-1,
        seed=40,
        stop="x",
        ignore_eos=True,
    )
    assert body.sampling(max_tokens=9, logprobs=2, choice=2) == SamplingParams(
        temperature=0.0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        seed=42,
        max_tokens=9,
        stop=("x",),
        logprobs=2,
        ignore_eos=True,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2.1},
        {"temperature": "1"},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": -1},
        {"min_p": 1.5},
        {"presence_penalty": 3},
        {"seed": 2**63},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"n": 0},
        {"n": 129},
        {"stop": ["a", "b", "c", "d", "e"]},
        {"stop": [""]},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": "x", "name": "y"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "half a pair: \ud800"}]},
        {"response_format": {"type": "json_object"}},
        {"top_logprobs": 2},
        {"logprobs": 1},
        {"stream_options": {"include_usage": True}},
        {"metadata": {"a": 1}},
        {"osd": {"domain": "two words"}},
        {"osd": {"speculation_length": 17}},
        {"osd": {"unknown": 1}},
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields: dict[str, Any]) -> None:
    assert refused_field(**fields).startswith(next(iter(fields)))


UNSUPPORTED = [
    "logit_bias",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "functions",
    "function_call",
    "audio",
    "modalities",
    "prediction",
    "reasoning_effort",
    "service_tier",
]


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_fields_are_refused_unless_null(name: str) -> None:
    assert refused_field(**{name: []}) == name
    chat(**{name: None})


def test_an_unknown_field_is_refused_even_if_null() -> None:
    assert refused_field(tempreature=None) == "tempreature"


def test_null_is_absent() -> None:
    body = chat(temperature=None, stop=None, n=None, stream=None, store=None, seed=None, metadata=None, osd=None)
    assert body == chat()


def test_harmless_fields_are_accepted() -> None:
    chat(user="someone", metadata={"a": "b"}, response_format={"type": "text"}, store=True)


def test_limits_by_both_names_are_refused() -> None:
    assert refused_field(max_tokens=5, max_completion_tokens=5) == "max_completion_tokens"
    assert chat(max_completion_tokens=5).answer_limit == 5
    assert chat(max_tokens=6).answer_limit == 6


def test_logprobs_in_the_engines_terms() -> None:
    assert chat().num_logprobs is None
    assert chat(logprobs=True).num_logprobs == 0
    assert chat(logprobs=True, top_logprobs=3).num_logprobs == 3


def test_messages_for_the_template() -> None:
    body = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "assistant", "content": "three", "tool_calls": None},
        ]
    )
    assert [message.for_template() for message in body.messages] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": "three"},
    ]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        ("", [""]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts_in_every_shape(prompt: Any, prompts: Any) -> None:
    assert completion(prompt=prompt).prompt == prompts


@pytest.mark.parametrize("prompt", [5, [], ["a", 1], [1, "a"], ["a", [1]], {"a": 1}, [1.5], [True]])
def test_other_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(ValidationError):
        completion(prompt=prompt)


@pytest.mark.parametrize("fields", [{"echo": True}, {"suffix": "x"}, {"best_of": 2}, {"logprobs": 21}])
def test_unsupported_completion_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        completion(**fields)
    completion(echo=False, suffix=None, best_of=None)


async def test_queries_of_a_request() -> None:
    engine = FakeEngineClient()
    body = {
        **COMPLETION,
        "prompt": ["ab", "cd"],
        "n": 2,
        "seed": 5,
        "store": False,
        "osd": {"domain": "code", "speculation_length": 0},
    }
    async with http_client(engine) as client:
        answer = (await client.post("/v1/completions", json=body)).json()
    queries = sorted(engine.requests, key=lambda query: query.request_id)
    assert [query.prompt_ids for query in queries] == [(97, 98), (97, 98), (99, 100), (99, 100)]
    assert [query.params.seed for query in queries] == [5, 6, 7, 8]
    assert {(query.domain, query.store, query.speculation_length) for query in queries} == {("code", False, 0)}
    assert {query.params.max_tokens for query in queries} == {16}
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 4


async def test_chat_may_fill_the_context_and_no_more() -> None:
    engine = FakeEngineClient()
    prompt_tokens = len("<user>hi<assistant>")
    async with http_client(engine, FakeCodec(context_tokens=64)) as client:
        await client.post("/v1/chat/completions", json=CHAT)
        await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 4096})
        await client.post("/v1/chat/completions", json={**CHAT, "max_tokens": 3})
    assert [query.params.max_tokens for query in engine.requests] == [64 - prompt_tokens, 64 - prompt_tokens, 3]
    assert engine.requests[0].store
