from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from osd.records.query import SamplingParams
from serving.answering.sampling import sampling_params
from serving.wire.chat_request import ChatRequest
from serving.wire.completions_request import CompletionRequest
from serving.wire.inert_fields import InertChat, InertCompletion, InertGeneration, InertMessage, WireModel
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import CHAT, COMPLETION, http_client


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({**CHAT, **fields})


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({**COMPLETION, **fields})


def _params(body: ChatRequest, *, max_tokens: int, logprobs: int | None = None) -> SamplingParams:
    return sampling_params(body, FakeCodec(), max_tokens=max_tokens, logprobs=logprobs, prompt_logprobs=None)


def refused_field(**fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        chat(**fields)
    return ".".join(map(str, caught.value.errors()[0]["loc"]))


def test_defaults_are_the_engines() -> None:
    assert _params(chat(), max_tokens=128) == SamplingParams()


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
    assert _params(body, max_tokens=9, logprobs=2) == SamplingParams(
        temperature=0.0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        presence_penalty=1.0,
        frequency_penalty=-1.0,
        seed=40,
        max_tokens=9,
        stop=("x",),
        logprobs=2,
        ignore_eos=True,
    )


TOOL = {"type": "function", "function": {"name": "f", "description": "does f", "parameters": {"type": "object"}}}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": [1]}'}}


def _allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def deep(levels: int) -> dict[str, Any]:
    return {"a": deep(levels - 1)} if levels else {}


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2.1},
        {"temperature": "1"},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_k": -2},
        {"min_p": 1.5},
        {"presence_penalty": 3},
        {"seed": 2**63},
        {"max_tokens": 0},
        {"max_tokens": True},
        {"n": 0},
        {"n": 129},
        {"stop": ["a"] * 65},
        {"stop": ["a" * 1025]},
        {"length_penalty": 2},
        {"length_penalty": 11, "use_beam_search": True},
        {"stop": [""]},
        {"messages": []},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": "x", "name": 5}]},
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "a"}]}]},
        {"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]},
        {"messages": [{"role": "user", "content": "x", "tool_call_id": "a"}]},
        {"messages": [{"role": "assistant", "content": None}]},
        {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "[1]"}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": "{"}}]}]},
        {"tools": [TOOL, TOOL]},
        {"tools": [{"type": "function", "function": {"name": "two words"}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "strict": 1}}]},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": deep(65)}}]},
        {"tools": [{"type": "function", "function": {"name": f"f{number}"}} for number in range(129)]},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tool_choice": _allowed("auto", "f", "g"), "tools": [TOOL]},
        {"tool_choice": _allowed("none", "f"), "tools": [TOOL]},
        {"tool_choice": _allowed("auto"), "tools": [TOOL]},
        {"parallel_tool_calls": 1},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": "half a pair: \ud800"}]},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
        {"structured_outputs": {"regex": ""}},
        {"structured_outputs": {"structural_tag": "x"}},
        {"structural_tag": {"type": "structural_tag"}},
        {"cache_salt": ""},
        {"request_id": "two words"},
        {"stream_interval": 0},
        {"thinking_token_budget": -2},
        {"repetition_detection": {"max_pattern_size": 257, "min_count": 2}},
        {"logprob_token_ids": [5] * 129},
        {"chat_template": ""},
        {"guided_choice": []},
        {"stream_options": {"continuous_usage_stats": True}},
        {"repetition_penalty": 0},
        {"logit_bias": {"a": 1}},
        {"logit_bias": {"5": 101}},
        {"bad_words": [""]},
        {"stop_token_ids": ["x"]},
        {"prompt_logprobs": 21},
        {"prompt_logprobs": 1, "stream": True},
        {"truncate_prompt_tokens": 0},
        {"truncation_side": "middle"},
        {"priority": 2**31},
        {"min_tokens": -1},
        {"stream_options": {"include_obfuscation": True}, "stream": True},
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


# Every field that osd does not implement, with values that ask for nothing (null always does) and one that asks.
INERT: dict[type[WireModel], dict[str, tuple[list[Any], Any]]] = {
    InertGeneration: {
        "ec_transfer_params": ([{}], {"a": 1}),
        "kv_transfer_params": ([{}], {"a": 1}),
        "logits_processors": ([[]], ["x"]),
        "moderation": ([], {}),
        "prompt_cache_options": ([{}], {"mode": "explicit"}),
        "prompt_cache_retention": (["in_memory", "in-memory"], "24h"),
        "return_mm_kwargs": ([True], False),
        "return_token_offsets": ([False], True),
        "routed_experts_prompt_start": ([0], 1),
        "service_tier": (["auto", "default"], "flex"),
        "spaces_between_special_tokens": ([True, False], "x"),
        "vllm_xargs": ([{}], {"a": 1}),
        "watermarking": ([False], True),
    },
    InertChat: {
        "audio": ([], {}),
        "function_call": (["none", "auto"], {"name": "f"}),
        "functions": ([[]], [{"name": "f"}]),
        "media_io_kwargs": ([{}], {"a": {}}),
        "mm_processor_kwargs": ([{}], {"a": 1}),
        "modalities": ([["text"]], ["text", "audio"]),
        "prediction": ([], {}),
        "verbosity": (["medium"], "low"),
        "web_search_options": ([], {}),
    },
    InertCompletion: {
        "prompt_embeds": ([], "x"),
        "suffix": ([""], "x"),
    },
    InertMessage: {
        "annotations": ([[]], [{}]),
        "audio": ([], {"id": "x"}),
        "function_call": ([], {"name": "f"}),
        "provider_specific_fields": ([{}], {"a": 1}),
        "refusal": ([], "no"),
    },
}


def body_with(model: type[WireModel], name: str, value: Any) -> tuple[type[WireModel], dict[str, Any]]:
    if model is InertMessage:
        return ChatRequest, {**CHAT, "messages": [{"role": "assistant", "content": "hi", name: value}]}
    if model is InertCompletion:
        return CompletionRequest, {**COMPLETION, name: value}
    return ChatRequest, {**CHAT, name: value}


def test_every_inert_field_is_listed() -> None:
    for model, fields in INERT.items():
        assert set(fields) == set(model.model_fields)


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, fields in INERT.items() for name in fields])
def test_values_that_ask_for_nothing_are_accepted_and_others_refused(model: type[WireModel], name: str) -> None:
    accepted, refused = INERT[model][name]
    for value in [None, *accepted]:
        request, body = body_with(model, name, value)
        request.model_validate(body)
    request, body = body_with(model, name, refused)
    with pytest.raises(ValidationError) as caught:
        request.model_validate(body)
    (problem,) = caught.value.errors()
    assert problem["loc"][-1] == name and problem["type"] == "unsupported"
    assert all(json.dumps(value) in problem["msg"] for value in accepted if value != 1), problem["msg"]


def test_an_unknown_field_is_refused_even_if_null() -> None:
    assert refused_field(tempreature=None) == "tempreature"


def test_null_is_absent() -> None:
    body = chat(temperature=None, stop=None, n=None, stream=None, store=None, seed=None, metadata=None, osd=None)
    assert body == chat()


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "someone"},
        {"metadata": {"a": "b"}},
        {"response_format": {"type": "text"}},
        {"store": True},
        {"prompt_cache_key": "a"},
        {"safety_identifier": "b"},
        {"session_id": "c"},
        {"stop": []},
        {"messages": [{"role": "user", "name": "Ann", "content": "hi"}]},
        {"top_logprobs": 0},
        {"stream_interval": 1},
        {"thinking_token_budget": -1},
        {"repetition_detection": {}},
        {"logprob_token_ids": []},
        {"stream_options": {"include_usage": False, "continuous_usage_stats": False, "include_obfuscation": False}},
        {"tools": []},
        {"tool_choice": "none"},
        {"parallel_tool_calls": True},
        {"logit_bias": {}},
        {"service_tier": "auto"},
        {"top_k": -1},
        {"skip_special_tokens": True},
        {"min_tokens": 0},
        {"priority": 0},
        {"repetition_penalty": 1.0},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_harmless_fields_change_nothing(fields: dict[str, Any]) -> None:
    """The engine is asked the same as without them."""
    engine = FakeEngineClient()
    async with http_client(engine) as client:
        for body in (CHAT, {**CHAT, **fields}):
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    plain, with_fields = (replace(query, request_id="") for query in engine.requests)
    assert with_fields == plain


def test_a_note_on_a_part_of_a_message_changes_nothing() -> None:
    part = {"type": "text", "text": "x"}
    plain, noted = (
        chat(messages=[{"role": "user", "content": [content]}])
        for content in (part, {**part, "cache_control": {"type": "ephemeral"}})
    )
    assert noted.messages[0].for_template() == plain.messages[0].for_template()


async def test_a_least_length_where_nothing_ends_an_answer_early() -> None:
    """As benchmark clients ask for answers of a set length."""
    chat(min_tokens=0)
    engine = FakeEngineClient()
    body = {**COMPLETION, "max_tokens": 16, "ignore_eos": True}
    async with http_client(engine) as client:
        assert (await client.post("/v1/completions", json={**body, "min_tokens": 16})).status_code == 200
        refused = await client.post("/v1/completions", json={**body, "min_tokens": 17})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "min_tokens"
    (query,) = engine.requests
    assert query.params.ignore_eos and query.params.max_tokens == 16


def test_no_top_k_by_either_number() -> None:
    for top_k in (0, -1):
        assert _params(chat(top_k=top_k), max_tokens=1).top_k == 0


def test_limits_by_both_names_must_be_equal() -> None:
    assert refused_field(max_tokens=5, max_completion_tokens=6) == "max_completion_tokens"
    assert chat(max_tokens=5, max_completion_tokens=5).answer_limit == 5
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
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "three"},
    ]


def test_tool_calls_for_the_template() -> None:
    body = chat(
        messages=[
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [{**CALL, "index": 0}]},
            {"role": "tool", "tool_call_id": "a", "name": "f", "content": "5"},
        ]
    )
    assert [message.for_template() for message in body.messages[1:]] == [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": {"x": [1]}}}],
            "reasoning_content": "hm",
        },
        {"role": "tool", "content": "5", "tool_call_id": "a", "name": "f"},
    ]


def test_offered_tools() -> None:
    assert [tool.name for tool in chat(tools=[TOOL]).offered_tools] == ["f"]
    assert chat(tools=[TOOL], tool_choice="none").offered_tools == []
    assert chat(tools=[{"type": "function", "function": {"name": "f", "parameters": deep(63)}}]).offered_tools


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
