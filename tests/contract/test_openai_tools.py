"""Tools and reasoning with the official `openai` client against a real server, whose engine follows a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from osd.config.settings import load_config
from osd.text.chat_template import ChatFeatures
from serving.app import create_app
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_server import serve

FEATURES = ChatFeatures(tools=True, calls=True, call_format="hermes", reasoning=True)
MODEL = "fake-model"
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": {"type": "object"}}}
    for name in ("get_weather", "add")
]


def _named(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


ASK: Any = [{"role": "user", "content": "How warm is it?"}]
TWO_CALLS = (
    "<think>\nI must look.\n</think>\n\nOne moment.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def engine() -> FakeEngineClient:
    return FakeEngineClient()


@pytest.fixture(scope="module")
def client(engine: FakeEngineClient) -> Iterator[openai.OpenAI]:
    app = create_app(load_config(), engine, FakeCodec(features=FEATURES, context_tokens=1000), admin_token_sha256="")
    with (
        serve(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def fresh(engine: FakeEngineClient) -> None:
    engine.answer, engine.tokens_per_delta = "Hello world", 3
    engine.requests.clear()


def valid(answer: ChatCompletion | ChatCompletionChunk) -> None:
    """The client builds its types unchecked; this checks."""
    type(answer).model_validate(answer.model_dump(), strict=False)


def test_calls(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    engine.answer = TWO_CALLS
    answer = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS)
    valid(answer)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    assert choice.message.model_extra == dict.fromkeys(("reasoning", "reasoning_content"), "I must look.")
    calls = choice.message.tool_calls or []
    assert [(call.type, call.function.name) for call in calls if call.type == "function"] == [
        ("function", "get_weather"),
        ("function", "add"),
    ]
    assert json.loads(calls[0].function.arguments) == {"city": "Köln"}  # type: ignore[union-attr]
    assert len({call.id for call in calls}) == 2 and all(len(call.id) == 9 for call in calls)


@pytest.mark.parametrize("tokens_per_delta", [1, 2, 3, 5, 8, 13, 200])
def test_streamed_calls_are_the_same_however_many_tokens_a_round_commits(
    client: openai.OpenAI, engine: FakeEngineClient, tokens_per_delta: int
) -> None:
    engine.answer, engine.tokens_per_delta = TWO_CALLS, tokens_per_delta
    with client.chat.completions.stream(model=MODEL, messages=ASK, tools=TOOLS) as stream:
        reasoning = ""
        for event in stream:
            if event.type == "chunk" and event.chunk.choices:
                valid(event.chunk)
                reasoning += (event.chunk.choices[0].delta.model_extra or {}).get("reasoning_content", "")
        final = stream.get_final_completion()
    (choice,) = final.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "One moment.")
    assert reasoning == "I must look."
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or ()]
    assert calls == [("get_weather", {"city": "Köln"}), ("add", {"a": 1, "b": 2})]


def test_choices_of_one_stream_are_split_apart(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    engine.answer = TWO_CALLS
    arguments = {(choice, call): "" for choice in range(3) for call in range(2)}
    finished = []
    for chunk in client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS, n=3, stream=True):
        for choice in chunk.choices:
            finished += [choice.finish_reason] if choice.finish_reason else []
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                arguments[choice.index, call.index] += call.function.arguments or ""
    assert finished == ["tool_calls"] * 3
    assert {text for (_, call), text in arguments.items() if call == 0} == {'{"city": "Köln"}'}
    assert {text for (_, call), text in arguments.items() if call == 1} == {'{"a": 1, "b": 2}'}


def test_a_loop_of_two_tools_to_its_end(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    messages: Any = list(ASK)
    script = [
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": {"a": 20, "b": 1}}</tool_call>',
        "It is 21 degrees.",
    ]
    run: dict[str, Any] = {"get_weather": lambda city: f"20 in {city}", "add": lambda a, b: str(a + b)}
    for text in script:
        engine.answer = text
        message = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS).choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls or ():
            assert call.type == "function"
            result = run[call.function.name](**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    assert messages[-1]["content"] == "It is 21 degrees."
    prompt = "".join(map(chr, engine.requests[-1].prompt_ids))
    assert prompt == (
        "get_weatheradd<user>How warm is it?<assistant>get_weather<tool>20 in Oslo<assistant>add<tool>21<assistant>"
    )


def test_an_answer_that_calls_nothing(client: openai.OpenAI) -> None:
    choice = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS).choices[0]
    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == ("stop", "Hello world", None)


def test_tool_choice_none_neither_tells_of_tools_nor_looks_for_calls(
    client: openai.OpenAI, engine: FakeEngineClient
) -> None:
    engine.answer = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    choice = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS, tool_choice="none").choices[0]
    assert (choice.finish_reason, choice.message.content) == ("stop", engine.answer)
    assert "get_weather" not in "".join(map(chr, engine.requests[0].prompt_ids))


def test_one_call_where_no_more_are_wanted(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    engine.answer = TWO_CALLS
    for stream in (False, True):
        extra: Any = {"parallel_tool_calls": False, "stream": stream}
        answer: Any = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS, **extra)
        if stream:
            pieces = [call for chunk in answer for call in chunk.choices[0].delta.tool_calls or ()]
            assert {piece.index for piece in pieces} == {0}
        else:
            assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["get_weather"]


def test_arguments_cut_off_by_max_tokens_say_length(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    engine.answer = '<tool_call>{"name": "add", "arguments": {"a": [1, 1, 1, 1, 1, 1'
    choice = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS, max_tokens=50).choices[0]
    assert choice.finish_reason == "length"
    calls: Any = choice.message.tool_calls
    assert calls[0].function.arguments == '{"a": [1, '


def test_reasoning_can_be_left_out(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    engine.answer = "<think>hm</think>Yes."
    choice = client.chat.completions.create(model=MODEL, messages=ASK, extra_body={"include_reasoning": False}).choices[
        0
    ]
    assert choice.message.content == "Yes." and not choice.message.model_extra


def test_logprobs_are_of_every_token_once(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    engine.answer = TWO_CALLS
    chunks = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS, logprobs=True, stream=True)
    tokens = [token.token for chunk in chunks if (some := chunk.choices[0].logprobs) for token in some.content or ()]
    assert "".join(tokens) == TWO_CALLS


@pytest.mark.parametrize(
    ("features", "fields", "param", "said"),
    [
        (ChatFeatures(), {"tools": TOOLS}, "tools", "tells the model of no tools"),
        (ChatFeatures(tools=True), {"tools": TOOLS}, "tools", "target.tool_call_format"),
        (FEATURES, {"tools": TOOLS, "tool_choice": _named("other")}, "tool_choice", "no tool is named"),
        (
            ChatFeatures(tools=True, call_format="hermes"),
            {
                "messages": [
                    *ASK,
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                    },
                ]
            },
            "messages",
            "earlier turns",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    features: ChatFeatures, fields: dict[str, Any], param: str, said: str
) -> None:
    app = create_app(load_config(), FakeEngineClient(), FakeCodec(features=features), admin_token_sha256="")
    with (
        serve(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.BadRequestError) as refused,
    ):
        client.chat.completions.create(model=MODEL, **{"messages": ASK, **fields})
    assert refused.value.param == param and said in str(refused.value)


def test_the_format_of_calls_can_be_configured() -> None:
    config = load_config(flags={"target": {"tool_call_format": "llama3_json"}})
    engine = FakeEngineClient(answer='{"name": "add", "parameters": {"a": 1}}')
    app = create_app(config, engine, FakeCodec(features=ChatFeatures(tools=True)), admin_token_sha256="")
    with serve(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        choice = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS).choices[0]
    calls: Any = choice.message.tool_calls
    assert calls[0].function.arguments == '{"a": 1}' and choice.message.content is None


def test_an_answer_that_begins_within_its_reasoning() -> None:
    engine = FakeEngineClient(answer="hm\n</think>\n\nYes.")
    codec = FakeCodec(features=FEATURES, prompt_end="<think>\n")
    app = create_app(load_config(), engine, codec, admin_token_sha256="")
    with serve(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        message = client.chat.completions.create(model=MODEL, messages=ASK).choices[0].message
    assert message.content == "Yes." and message.model_extra == dict.fromkeys(("reasoning", "reasoning_content"), "hm")


_BY_TEMPLATE: dict[str, Any] = {
    "start_anchor": "<assistant>",
    "fields": {
        "thinking": {"open": "<|thought>", "close": "<thought|>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"<\|call>(?P<name>\w+)",
            "close": "<call|>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"content": "text"},
    },
}


def _strict(tool: Any) -> Any:
    return {**tool, "function": {**tool["function"], "strict": True}}


def test_a_response_template_reads_the_answer() -> None:
    """As `tokenizer_config.json` brings it along: with marks that are in none of the known formats."""
    pytest.importorskip("transformers.utils.chat_parsing")
    engine = FakeEngineClient(answer='<|thought>Hm.<thought|>One moment.<|call>add{"a": 1}<call|><|call>add{}<call|>')
    features = ChatFeatures(tools=True, calls=True, response_template=_BY_TEMPLATE)
    app = create_app(load_config(), engine, FakeCodec(features=features), admin_token_sha256="")
    with serve(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        message = client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS).choices[0].message
        with client.chat.completions.stream(model=MODEL, messages=ASK, tools=TOOLS) as stream:
            streamed = stream.get_final_completion().choices[0]
        for enforced in ({"tools": TOOLS, "tool_choice": "required"}, {"tools": [_strict(TOOLS[0])]}):
            with pytest.raises(openai.BadRequestError, match="no grammar of them is known; let it choose"):
                client.chat.completions.create(model=MODEL, messages=ASK, **enforced)
    for told in (message, streamed.message):
        assert told.content == "One moment." and (told.model_extra or {})["reasoning_content"] == "Hm."
        calls: Any = told.tool_calls
        assert [call.function.arguments for call in calls] == ['{"a": 1}', "{}"]
    assert streamed.finish_reason == "tool_calls"
    # The marks are special tokens, which the text would otherwise lack.
    assert [request.params.skip_special_tokens for request in engine.requests] == [False, False]


def test_enforced_calls_are_read_in_the_format_that_the_grammar_writes() -> None:
    engine = FakeEngineClient(answer=TWO_CALLS.partition("moment.")[2])
    features = FEATURES._replace(response_template=_BY_TEMPLATE)
    app = create_app(load_config(), engine, FakeCodec(features=features, context_tokens=1000), admin_token_sha256="")
    with serve(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        asked: Any = {"model": MODEL, "messages": ASK, "tools": TOOLS, "tool_choice": "required"}
        message = client.chat.completions.create(**asked).choices[0].message
    calls: Any = message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather", "add"]
    assert engine.requests[0].constraint is not None and engine.requests[0].params.skip_special_tokens
