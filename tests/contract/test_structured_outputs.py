"""Forms of answers with the official clients: a random model's answers parse, and what cannot be had says why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import httpx
import openai
import pytest
from pydantic import BaseModel

from osd.config.settings import load_config
from serving.app import create_app
from tests.kit.http_server import serve
from tests.kit.local_client import local_client

ASK: Any = [{"role": "user", "content": "How warm is it?"}]


class Weather(BaseModel):
    """What the random model has to fill in."""

    city: Literal["Oslo", "Köln"]
    is_cold: bool
    wind: Literal["none", "strong"] | None


_PARAMETERS = {
    "type": "object",
    "properties": {"place": {"enum": ["Oslo", "Bonn"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["place", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "forecast", "description": "d", "parameters": _PARAMETERS}},
    {"type": "function", "function": {"name": "stop.all", "description": "e", "parameters": None}},
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with local_client() as (client, codec):
        app = create_app(load_config(), client, codec, admin_token_sha256="")
        with serve(app) as url:
            yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.mark.parametrize("seed", range(4))
def test_a_pydantic_model_is_parsed(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.parse(model="tiny", messages=ASK, response_format=Weather, seed=seed)
    assert isinstance(answer.choices[0].message.parsed, Weather)
    assert answer.choices[0].finish_reason == "stop"


def test_a_pydantic_model_is_parsed_from_a_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=ASK, response_format=Weather, seed=1) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Weather)


def test_a_pydantic_model_is_parsed_from_a_response(client: openai.OpenAI) -> None:
    response = client.responses.parse(model="tiny", input="How warm is it?", text_format=Weather)
    assert isinstance(response.output_parsed, Weather)
    assert response.text is not None and response.text.format is not None
    assert response.text.format.type == "json_schema"


def test_any_object(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=ASK, response_format={"type": "json_object"}, max_tokens=200, n=6, seed=3
    )
    finished = [choice for choice in answer.choices if choice.finish_reason == "stop"]
    assert finished
    assert all(isinstance(json.loads(choice.message.content or ""), dict) for choice in finished)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"grammar": 'start: "a"+ "!"'}}, "a+!"),
        ({"structured_outputs": {"grammar": 'root ::= "x" [0-9]'}}, "x[0-9]"),
        ({"structured_outputs": {"json": {"const": 7}}}, "7"),
        ({"structured_outputs": {"json": '{"enum": [[1, 2]]}', "disable_any_whitespace": True}}, r"\[1,2\]"),
        ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
        ({"guided_choice": ["Straße", "Weg"]}, "Straße|Weg"),
        ({"guided_json": {"type": "boolean"}}, "true|false"),
        ({"guided_grammar": 'start: "q"'}, "q"),
    ],
)
def test_forms_of_vllm(client: openai.OpenAI, form: dict[str, Any], pattern: str) -> None:
    texts = [
        client.completions.create(model="tiny", prompt="It is", max_tokens=40, seed=5, extra_body=form).choices[0].text,
        client.chat.completions.create(model="tiny", messages=ASK, seed=5, extra_body=form).choices[0].message.content,
    ]
    for text in texts:
        assert re.fullmatch(pattern, text or ""), text


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_made_because_it_is_required(client: openai.OpenAI, stream: bool) -> None:
    for seed in range(4):
        options: Any = {"model": "tiny", "messages": ASK, "tools": TOOLS, "tool_choice": "required", "seed": seed}
        options |= {"parallel_tool_calls": False, "max_tokens": 300}
        if stream:
            try:
                with client.chat.completions.stream(**options) as events:
                    choice: Any = events.get_final_completion().choices[0]
            except openai.LengthFinishReasonError:
                continue
        else:
            choice = client.chat.completions.create(**options).choices[0]
        if choice.finish_reason == "length":
            continue  # within the free object of the tool without parameters
        (call,) = choice.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert choice.finish_reason == "tool_calls"
        assert not choice.message.content
        if call.function.name == "forecast":
            assert arguments["place"] in ("Oslo", "Bonn") and arguments["days"] in range(1, 10)


def test_the_named_tool_is_called(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "forecast"}}
    answer: Any = client.chat.completions.create(
        model="tiny", messages=ASK, tools=TOOLS, tool_choice=choice, n=4, seed=9
    )
    for one in answer.choices:
        (call,) = one.message.tool_calls
        assert call.type == "function" and call.function.name == "forecast"
        assert set(json.loads(call.function.arguments)) == {"place", "days"}


def test_the_named_tool_of_a_response(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "forecast", "parameters": _PARAMETERS, "strict": True}
    response = client.responses.create(
        model="tiny", input="Go", tools=[tool], tool_choice={"type": "function", "name": "forecast"}
    )
    (item,) = response.output
    assert item.type == "function_call" and set(json.loads(item.arguments)) == {"place", "days"}


def test_anthropics_choices_and_format(url: str) -> None:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=60) as typed:
        client: Any = typed
        tools: Any = [{"name": "forecast", "input_schema": _PARAMETERS}]
        for choice in ({"type": "any"}, {"type": "tool", "name": "forecast"}):
            used = client.messages.create(
                model="tiny",
                max_tokens=400,
                messages=ASK,
                tools=tools,
                tool_choice={**choice, "disable_parallel_tool_use": True},
            )
            assert [block.type for block in used.content] == ["tool_use"]
            assert set(used.content[0].input) == {"place", "days"}
        form = {"type": "json_schema", "schema": {"const": [1]}}
        answer = client.messages.create(
            model="tiny", max_tokens=100, messages=ASK, extra_body={"output_config": {"format": form}}
        )
        assert json.loads(answer.content[0].text) == [1]


def test_a_document_that_is_cut_says_length(client: openai.OpenAI) -> None:
    form = {"structured_outputs": {"regex": "[a-z]{80}"}}
    answer = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=4, extra_body=form)
    assert answer.choices[0].finish_reason == "length"


def test_an_answer_with_tools_may_keep_to_a_form_instead(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": "only this"}}}
    strict: Any = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}]
    answer = client.chat.completions.create(
        model="tiny", messages=ASK, tools=strict, response_format=form, n=8, seed=2, parallel_tool_calls=False
    )
    for choice in answer.choices:
        if choice.message.tool_calls:
            assert set(json.loads(choice.message.tool_calls[0].function.arguments)) == {"place", "days"}  # type: ignore[union-attr]
        else:
            assert json.loads(choice.message.content or "") == "only this"


def _schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


_CHAT = {"model": "tiny", "messages": ASK}
_MULTIPLE = {"guided_grammar": 'start: %json {"type": "integer", "multipleOf": 999983}'}
_STRICT_SET = {
    "type": "function",
    "function": {"name": "f", "strict": True, "parameters": {"properties": {"a": {"uniqueItems": True}}}},
}


@pytest.mark.parametrize(
    ("route", "body", "param", "says"),
    [
        ("chat/completions", _schema({"uniqueItems": True}), "response_format.json_schema.schema", "uniqueItems"),
        ("chat/completions", _schema({"$ref": "#"}), "response_format.json_schema.schema", "no text satisfies"),
        ("chat/completions", {"response_format": {"type": "xml"}}, "response_format", "xml"),
        ("chat/completions", {"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed"),
        ("chat/completions", {"guided_choice": []}, "guided_choice", "at least 1"),
        ("chat/completions", {"guided_grammar": "::="}, "guided_grammar", "grammar"),
        ("chat/completions", _MULTIPLE, "guided_grammar", "999983, is above 100000"),
        ("chat/completions", {"guided_json": {"multipleOf": 999983}}, "guided_json", "999983, is above 100000"),
        ("chat/completions", {"guided_json": "{"}, "guided_json", "JSON Schema"),
        ("chat/completions", {"guided_json": {}, "guided_regex": "a"}, "guided_regex", "different forms"),
        ("chat/completions", {"guided_regex": "a", "ignore_eos": True}, "ignore_eos", "ends where it is complete"),
        ("chat/completions", {"tools": TOOLS, "guided_regex": "a"}, "guided_regex", "cannot be combined with tools"),
        ("chat/completions", {"tools": [_STRICT_SET]}, "tools[0].function.parameters", "uniqueItems"),
        ("chat/completions", {"tool_choice": "required"}, "tool_choice", "no tools"),
        (
            "chat/completions",
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
            "tool_choice",
            "no tool is named 'other'",
        ),
        (
            "responses",
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}},
            "text.format.schema",
            "not",
        ),
    ],
)
def test_what_is_refused_names_the_field(url: str, route: str, body: dict[str, Any], param: str, says: str) -> None:
    whole = {"model": "tiny", "input": "Go"} if route == "responses" else _CHAT
    answer = httpx.post(f"{url}/v1/{route}", json={**whole, **body}, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert says in error["message"]
