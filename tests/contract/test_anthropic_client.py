"""The official `anthropic` client against a real server, whose engine follows a script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, message_create_params

from osd.config.settings import load_config
from osd.records.errors import EngineUnavailableError, QueueFullError
from osd.records.query import Request, TokenDelta
from osd.text.chat_template import ChatFeatures
from serving.app import create_app
from serving.messages.request import MessagesRequest
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_client import http_client
from tests.kit.http_server import serve

MODEL = "fake-model"
FEATURES = ChatFeatures(tools=True, calls=True, call_format="hermes", reasoning=True)
ASK: Any = [{"role": "user", "content": "How warm is it?"}]
TOOLS: Any = [{"name": name, "description": name, "input_schema": {"type": "object"}} for name in ("look", "add")]
TWO_CALLS = (
    "<think>I must look.</think>One moment.\n"
    '<tool_call>{"name": "look", "arguments": {"city": "Köln"}}</tool_call>'
    '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
)


class StoppingEngine(FakeEngineClient):
    """Commits the stop string's tokens, too, and tells which it was, as the engine does."""

    async def generate(self, request: Request) -> AsyncIterator[TokenDelta]:
        async for delta in super().generate(request):
            stops = request.params.stop if delta.finish_reason == "stop" else ()
            stop = next((stop for stop in stops if stop in self.answer), None)
            yield TokenDelta(
                request_id=delta.request_id,
                token_ids=delta.token_ids + tuple(map(ord, stop or "")),
                text=delta.text,
                finish_reason=delta.finish_reason,
                stopped_by=stop,
                stats=delta.stats,
            )


@pytest.fixture(scope="module")
def engine() -> StoppingEngine:
    return StoppingEngine()


@pytest.fixture(scope="module")
def client(engine: StoppingEngine) -> Iterator[anthropic.Anthropic]:
    config = load_config(flags={"server": {"api_keys_sha256": [sha256(b"key").hexdigest()], "max_body_bytes": 4096}})
    app = create_app(config, engine, FakeCodec(features=FEATURES, context_tokens=1000), admin_token_sha256="")
    with (
        serve(app) as url,
        anthropic.Anthropic(base_url=url, api_key="key", max_retries=0, timeout=20) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def fresh(engine: StoppingEngine) -> None:
    engine.answer, engine.tokens_per_delta, engine.refuse, engine.fail_after = "Hello world", 3, None, None
    engine.requests.clear()


_USED = {"type": "tool_use", "id": "a", "name": "look", "input": {}}


def prompt_of(engine: StoppingEngine) -> str:
    return "".join(map(chr, engine.requests[-1].prompt_ids))


def create(client: anthropic.Anthropic, **fields: Any) -> Message:
    message: Message = client.messages.create(**{"model": MODEL, "max_tokens": 300, "messages": ASK, **fields})
    Message.model_validate(message.model_dump())  # the client builds its types unchecked
    return message


def test_a_message(client: anthropic.Anthropic, engine: StoppingEngine) -> None:
    message = create(client, system="Be brief.", metadata={"user_id": "x"}, extra_body={"temperature": 0, "top_k": 5})
    (block,) = message.content
    assert block.type == "text" and block.text == "Hello world"
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    (query,) = engine.requests
    assert "".join(map(chr, query.prompt_ids)) == "<system>Be brief.<user>How warm is it?<assistant>"
    assert (query.params.temperature, query.params.top_k, query.params.max_tokens) == (0.0, 5, 300)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (len(query.prompt_ids), 11)
    assert message.model_extra is not None and message.model_extra["osd"]["rounds"] == 4


def test_why_an_answer_ended(client: anthropic.Anthropic) -> None:
    assert create(client, max_tokens=4).stop_reason == "max_tokens"
    message = create(client, stop_sequences=["never", " w"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " w")
    assert message.content[0].type == "text" and message.content[0].text == "Hello"
    assert create(client, stop_sequences=["never"]).stop_reason == "end_turn"


@pytest.mark.parametrize("tokens_per_delta", [1, 4, 7, 300])
def test_a_stream_builds_the_same_message(
    client: anthropic.Anthropic, engine: StoppingEngine, tokens_per_delta: int
) -> None:
    engine.answer, engine.tokens_per_delta = TWO_CALLS, tokens_per_delta
    whole = create(client, tools=TOOLS)
    with client.messages.stream(model=MODEL, max_tokens=300, messages=ASK, tools=TOOLS) as stream:
        events = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert events[0] == "message_start" and events[-1] == "message_stop"

    def blocks(message: Any) -> list[dict[str, Any]]:
        return [block.model_dump(exclude={"id", "caller"}, exclude_none=True) for block in message.content]

    assert blocks(streamed) == blocks(whole)
    assert blocks(whole) == [
        {"type": "thinking", "thinking": "I must look.", "signature": ""},
        {"type": "text", "text": "One moment."},
        {"type": "tool_use", "name": "look", "input": {"city": "Köln"}},
        {"type": "tool_use", "name": "add", "input": {"a": 1}},
    ]
    assert whole.stop_reason == streamed.stop_reason == "tool_use"
    assert streamed.usage.output_tokens == whole.usage.output_tokens == len(TWO_CALLS)
    assert len({block.id for block in whole.content if block.type == "tool_use"}) == 2


def test_a_loop_of_two_tools_to_its_end(client: anthropic.Anthropic, engine: StoppingEngine) -> None:
    messages: Any = list(ASK)
    script = [
        '<tool_call>{"name": "look", "arguments": {"city": "Oslo"}}</tool_call>',
        'Now:<tool_call>{"name": "add", "arguments": {"a": 20}}</tool_call>',
        "It is 21 degrees.",
    ]
    for text in script:
        engine.answer = text
        message = create(client, messages=messages, tools=TOOLS)
        messages.append({"role": "assistant", "content": message.content})
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": f"{block.name} of {block.input}"}
            for block in message.content
            if block.type == "tool_use"
        ]
        if results:
            messages.append({"role": "user", "content": results})
    assert "".join(map(chr, engine.requests[-1].prompt_ids)) == (
        "lookadd<user>How warm is it?<assistant>look<tool>look of {'city': 'Oslo'}"
        "<assistant>Now:add<tool>add of {'a': 20}<assistant>"
    )


def test_an_answer_goes_on_with_the_assistants_last_message(
    client: anthropic.Anthropic, engine: StoppingEngine
) -> None:
    message = create(client, messages=[*ASK, {"role": "assistant", "content": "It is"}])
    assert message.content[0].type == "text" and message.content[0].text == "Hello world"
    assert prompt_of(engine) == "<user>How warm is it?<assistant>It is", "no new turn begins"


@pytest.mark.parametrize(
    ("thinking", "variables", "budget"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, '{"enable_thinking": true}', 1024),
        ({"type": "adaptive"}, '{"enable_thinking": true}', None),
        ({"type": "disabled"}, '{"enable_thinking": false}', None),
    ],
)
def test_thinking(
    client: anthropic.Anthropic, engine: StoppingEngine, thinking: Any, variables: str, budget: int | None
) -> None:
    create(client, thinking=thinking)
    assert prompt_of(engine) == f"<user>How warm is it?{variables}<assistant>"
    limit = engine.requests[-1].thinking
    assert (None if limit is None else limit.max_tokens) == budget


def test_effort_is_told_to_the_template(client: anthropic.Anthropic, engine: StoppingEngine) -> None:
    create(client, output_config={"effort": "low"}, thinking={"type": "disabled"})
    assert '"reasoning_effort": "low"' in prompt_of(engine) and '"enable_thinking": false' in prompt_of(engine)


async def test_a_model_that_does_not_reason_has_no_budget_for_it() -> None:
    body = {"model": MODEL, "max_tokens": 9, "messages": ASK}
    async with http_client() as http:
        for route in ("/v1/messages", "/v1/messages/count_tokens"):
            own = {key: value for key, value in body.items() if key != "max_tokens" or route == "/v1/messages"}
            refused = await http.post(route, json={**own, "thinking": {"type": "enabled", "budget_tokens": 9}})
            assert refused.status_code == 400 and "'thinking'" in refused.json()["error"]["message"]
            for kind in ("adaptive", "disabled"):
                assert (await http.post(route, json={**own, "thinking": {"type": kind}})).status_code == 200


def test_every_field_of_the_client_is_known() -> None:
    """Also those that are refused, with why."""
    asked = message_create_params.MessageCreateParamsBase.__annotations__.keys() | {"stream"}
    assert asked <= MessagesRequest.model_fields.keys()


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    count = client.messages.count_tokens(model=MODEL, messages=ASK, system="x", tools=TOOLS)
    assert count.input_tokens == len("lookadd<system>x<user>How warm is it?<assistant>")


def test_models_are_listed_with_this_clients_key(client: anthropic.Anthropic) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": [*ASK, {"role": "assistant", "content": [_USED]}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, "messages[0].content"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "every"}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "adaptive", "budget_tokens": 1}}, "thinking.budget_tokens"),
        ({"stop_sequences": ["a"] * 65}, "stop_sequences"),
        ({"extra_body": {"speed": "fast"}}, "speed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"mystery": 1}}, "mystery"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    client: anthropic.Anthropic, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        create(client, **fields)
    body: Any = refused.value.body
    assert body["error"]["type"] == "invalid_request_error" and f"'{named}" in body["error"]["message"]


def test_refusals_are_the_clients_exceptions(client: anthropic.Anthropic, engine: StoppingEngine) -> None:
    with pytest.raises(anthropic.NotFoundError):
        create(client, model="claude")
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="wrong").messages.create(model=MODEL, max_tokens=1, messages=ASK)
    with pytest.raises(anthropic.RequestTooLargeError):
        create(client, system="x" * 5000)
    engine.refuse = QueueFullError("full")
    with pytest.raises(anthropic.RateLimitError) as limited:
        create(client)
    assert limited.value.response.headers["retry-after"] == "1"
    engine.refuse = EngineUnavailableError("restarting")
    with pytest.raises(anthropic.APIStatusError) as unavailable:
        create(client)
    assert unavailable.value.status_code == 503
    assert unavailable.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]


def test_an_error_in_mid_stream(client: anthropic.Anthropic, engine: StoppingEngine) -> None:
    engine.fail_after = (2, EngineUnavailableError("no engine came back"))
    texts: list[str] = []
    with (
        pytest.raises(anthropic.APIStatusError, match="no engine came back"),
        client.messages.stream(model=MODEL, max_tokens=300, messages=ASK) as stream,
    ):
        texts.extend(stream.text_stream)
    assert "".join(texts) == "Hell"
