"""Every field of every request, with odd values, and with right ones alone and together."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import BaseModel

from osd.text.chat_template import ChatFeatures
from serving.messages.request import CountRequest, MessagesRequest
from serving.responses.request import InputTokensRequest, ResponsesRequest
from serving.routes.tokenize import DetokenizeRequest, TokenizeRequest
from serving.wire.chat_request import ChatRequest
from serving.wire.completions_request import CompletionRequest
from serving.wire.inert_fields import NoEffect
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import http_client
from tests.kit.local_client import local_client

SAID = [{"role": "user", "content": "hi"}]
ROUTES: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, {"messages": SAID, "max_tokens": 3}),
    "/v1/completions": (CompletionRequest, {"prompt": "hi", "max_tokens": 3}),
    "/v1/responses": (ResponsesRequest, {"input": "hi", "max_output_tokens": 3}),
    "/v1/responses/input_tokens": (InputTokensRequest, {"input": "hi"}),
    "/v1/messages": (MessagesRequest, {"messages": SAID, "max_tokens": 3}),
    "/v1/messages/count_tokens": (CountRequest, {"messages": SAID}),
    "/tokenize": (TokenizeRequest, {"prompt": "hi"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [104]}),
}
ODD: list[Any] = [True, 0, -1, 1, 2**70, 1.5, 1e308, "", "x", "x" * 5000, "\x00", "\u2028", "[", []]
ODD += [[None], [-1], ["x"], [[]], [{}], {}, {"x": 1}, {"type": "x"}, {"type": ["x"]}, {"": {"": {}}}]
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"], "additionalProperties": False}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
FLAT_TOOL: dict[str, Any] = {"type": "function", "name": "add", "parameters": SCHEMA}


def named_by(error: dict[str, Any]) -> str:
    """The field that an error names; Anthropic's errors name it in their text."""
    param = error.get("param") or re.split(r"'", error["message"].replace("The model ", "'model'") + "''")[1]
    return re.split(r"[.\[]", param)[0]


def name_of(model: type[BaseModel], field: str) -> str:
    return model.model_fields[field].alias or field


@pytest.mark.parametrize("route", ROUTES)
async def test_an_odd_value_is_taken_or_refused_by_its_name(route: str) -> None:
    model, body = ROUTES[route]
    features = ChatFeatures(tools=True, calls=True, call_format="hermes")
    codec = FakeCodec(features=features, context_tokens=9000)
    async with http_client(FakeEngineClient(), codec) as client:
        for field in (name_of(model, one) for one in model.model_fields):
            for value in ODD:
                answer = await client.post(route, json={"model": "fake-model", **body, field: value})
                where = f"{field}: {value!r:.60}: {answer.status_code} {answer.text[:300]}"
                assert answer.status_code in (200, 400, 404), where
                if answer.status_code != 200:
                    assert named_by(answer.json()["error"]) == field, where


COMMON: dict[str, list[Any]] = {
    "temperature": [0, 2, 0.7],
    "top_p": [1, 0.001],
    "top_k": [-1, 0, 1, 2**40],
    "min_p": [0, 1],
    "presence_penalty": [-2, 2],
    "frequency_penalty": [-2, 2],
    "repetition_penalty": [0.01, 10],
    "seed": [-(2**63), 0, 2**60],
    "stop": ["x", ["x"] * 64, []],
    "ignore_eos": [True],
    "logit_bias": [{"40": 100}, {"40": -100}, {}],
    "include_stop_str_in_output": [True],
    "skip_special_tokens": [False],
    "structured_outputs": [{"choice": ["a", "b"]}, {"regex": "a{2}"}, {"json": SCHEMA}],
    "priority": [-(2**31), 2**31 - 1],
    "cache_salt": ["a"],
    "store": [False, True],
    "osd": [{"speculation_length": 0}, {"speculation_length": 16, "domain": "a"}],
    "user": ["a"],
    "safety_identifier": ["a"],
    "prompt_cache_key": ["a"],
    "metadata": [{"a": "b"}],
    "stream": [True, False],
}
BOTH: dict[str, list[Any]] = COMMON | {
    "max_tokens": [1, 2**40],
    "n": [1, 3],
    "stream_options": [{"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}],
    "min_tokens": [0, 2],
    "response_format": [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        {"type": "structural_tag", "format": {"type": "const_string", "value": "a"}},
    ],
    "session_id": ["a"],
    "request_id": ["a"],
    "allowed_token_ids": [[40, 50]],
    "bad_words": [["a"]],
    "guided_choice": [["a", "b"]],
    "guided_decoding_backend": ["a"],
    "guided_grammar": ['start: "a"'],
    "guided_json": [SCHEMA],
    "guided_regex": ["a+b"],
    "guided_whitespace_pattern": ["[ ]?"],
    "length_penalty": [1.0],
    "logprob_token_ids": [[40]],
    "prompt_logprobs": [0, 20],
    "repetition_detection": [{"max_pattern_size": 4, "min_count": 3}],
    "return_token_ids": [True],
    "return_tokens_as_token_ids": [True],
    "stop_token_ids": [[40]],
    "stream_interval": [1, 2],
    "structural_tag": ['{"type": "structural_tag", "format": {"type": "any_text"}}'],
    "thinking_token_budget": [-1],
    "truncate_prompt_tokens": [-1, 1, 2**40],
    "truncation_side": ["left", "right"],
    "use_beam_search": [True],
}
RIGHT: dict[str, dict[str, list[Any]]] = {
    "/v1/chat/completions": BOTH
    | {
        "max_completion_tokens": [3],
        "logprobs": [True],
        "top_logprobs": [0, 20],
        "tools": [[TOOL]],
        "tool_choice": ["auto", "none", "required", {"type": "function", "function": {"name": "add"}}],
        "parallel_tool_calls": [True, False],
        "include_reasoning": [False],
        "reasoning_effort": ["none", "high"],
        "chat_template_kwargs": [{"enable_thinking": False}],
        "add_generation_prompt": [False],
        "continue_final_message": [False],
        "return_prompt_text": [True],
        "documents": [[{"text": "a"}]],
        "add_special_tokens": [True],
        "echo": [True],
        "chat_template": [],
    },
    "/v1/completions": BOTH
    | {
        "prompt": ["hi", [40, 50], ["hi", "ho"], [[40], [50]]],
        "logprobs": [0, 20],
        "add_special_tokens": [False],
        "echo": [True],
        "best_of": [1],
    },
    "/v1/responses": COMMON
    | {
        "instructions": ["Be brief."],
        "max_output_tokens": [1, 2**40],
        "tools": [[FLAT_TOOL]],
        "tool_choice": ["auto", "none", "required", {"type": "function", "name": "add"}],
        "parallel_tool_calls": [False],
        "stream_options": [{"include_obfuscation": False}],
        "text": [
            {"format": {"type": "json_object"}},
            {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}},
        ],
        "reasoning": [{"effort": "high", "summary": "auto"}],
        "request_id": ["a"],
        "background": [True],
        "include": [["message.output_text.logprobs"]],
        "max_tool_calls": [1],
        "top_logprobs": [0],
        "truncation": ["auto", "disabled"],
        "previous_response_id": [],
    },
}
BESIDE: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {},
        {"stream": True},
        {"n": 2, "logprobs": True},
        {"tools": [TOOL], "tool_choice": "required"},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    ],
    "/v1/completions": [{}, {"stream": True}, {"n": 2, "logprobs": 1}, {"response_format": {"type": "json_object"}}],
    "/v1/responses": [
        {},
        {"stream": True},
        {"tools": [FLAT_TOOL], "tool_choice": "required"},
        {"text": {"format": {"type": "json_object"}}, "background": True},
    ],
}


@pytest.mark.parametrize("route", RIGHT)
def test_there_is_a_right_value_for_every_field(route: str) -> None:
    model, body = ROUTES[route]
    inert = {
        name for name, info in model.model_fields.items() if any(isinstance(one, NoEffect) for one in info.metadata)
    }
    assert (
        model.model_fields.keys() - inert - body.keys() - {"model"} <= RIGHT[route].keys() <= model.model_fields.keys()
    )


@pytest.mark.slow
@pytest.mark.parametrize("route", RIGHT)
async def test_a_right_value_is_answered_alone_and_beside_others(route: str) -> None:
    """Alone it is taken. Beside what it cannot be combined with it is refused, by one of the names."""
    _, body = ROUTES[route]
    with local_client() as (engine, codec):
        async with http_client(engine, codec) as client:
            for field, values in RIGHT[route].items():
                for value in values:
                    for beside in BESIDE[route]:
                        asked = {"model": "tiny", **body, **beside, field: value}
                        if field in ("top_logprobs", "logprob_token_ids") and route != "/v1/responses":
                            asked.setdefault("logprobs", True if "messages" in body else 1)
                        if field in ("tool_choice", "parallel_tool_calls"):
                            asked.setdefault("tools", [TOOL if "messages" in body else FLAT_TOOL])
                        if field == "stream_options":
                            asked["stream"] = True
                        answer = await client.post(route, json=asked)
                        where = f"{asked}: {answer.status_code} {answer.text[-300:]}"
                        assert answer.status_code in ((200, 400) if beside else (200,)), where
                        if answer.status_code == 400:
                            assert named_by(answer.json()["error"]) in {field, *beside}, where
                        else:
                            assert '"error":{' not in answer.text, where
                        if field == "request_id" and route == "/v1/responses":
                            break  # it is taken now
