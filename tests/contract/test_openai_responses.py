"""/v1/responses with the official `openai` client against a real server, whose engine follows a script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from osd.config.settings import load_config
from osd.records.errors import EngineUnavailableError
from osd.text.chat_template import ChatFeatures
from serving.app import create_app
from serving.responses.items import ITEMS
from serving.responses.store import ResponseStore
from serving.wire.errors import ApiError
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_server import serve

MODEL = "fake-model"
FEATURES = ChatFeatures(tools=True, calls=True, call_format="hermes", reasoning=True)
TOOLS: Any = [
    {"type": "function", "name": name, "parameters": {"type": "object"}, "strict": False} for name in ("look", "add")
]
TWO_CALLS = (
    "<think>I must look.</think>One moment.\n"
    '<tool_call>{"name": "look", "arguments": {"city": "Köln"}}</tool_call>'
    '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture(scope="module")
def engine() -> FakeEngineClient:
    return FakeEngineClient()


@pytest.fixture(scope="module")
def client(engine: FakeEngineClient) -> Iterator[openai.OpenAI]:
    keys = [sha256(key.encode()).hexdigest() for key in ("key", "other")]
    app = create_app(
        load_config(flags={"server": {"api_keys_sha256": keys}}),
        engine,
        FakeCodec(features=FEATURES, context_tokens=1000),
        admin_token_sha256="",
    )
    with (
        serve(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0, timeout=20) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def fresh(engine: FakeEngineClient) -> None:
    engine.answer, engine.tokens_per_delta, engine.fail_after = "Hello world", 3, None
    engine.requests.clear()


def _allowed(mode: str, *names: str) -> Any:
    return {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": name} for name in names]}


def create(client: openai.OpenAI, **fields: Any) -> Response:
    response: Response = client.responses.create(**{"model": MODEL, "input": "hi", **fields})
    Response.model_validate(response.model_dump())  # the client builds its types unchecked
    return response


def prompt_of(engine: FakeEngineClient) -> str:
    return "".join(map(chr, engine.requests[-1].prompt_ids))


def test_a_response(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    response = create(client, instructions="Be brief.", temperature=0, max_output_tokens=50, metadata={"a": "b"})
    assert (response.status, response.output_text) == ("completed", "Hello world")
    assert prompt_of(engine) == "<system>Be brief.<user>hi<assistant>"
    assert response.usage is not None and response.usage.output_tokens == 11
    assert response.usage.input_tokens == len(engine.requests[0].prompt_ids)
    assert (response.metadata, response.instructions, response.temperature) == ({"a": "b"}, "Be brief.", 0)
    assert engine.requests[0].params.max_tokens == 50
    assert response.model_extra is not None and response.model_extra["osd"]["rounds"] == 4


def test_one_that_is_cut_off(client: openai.OpenAI) -> None:
    response = create(client, max_output_tokens=4)
    assert (response.status, response.output_text) == ("incomplete", "Hell")
    assert response.incomplete_details is not None and response.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize("tokens_per_delta", [1, 4, 7, 300])
def test_a_stream_builds_the_same_response(
    client: openai.OpenAI, engine: FakeEngineClient, tokens_per_delta: int
) -> None:
    engine.answer, engine.tokens_per_delta = TWO_CALLS, tokens_per_delta
    whole = create(client, tools=TOOLS)
    with client.responses.stream(model=MODEL, input="hi", tools=TOOLS) as stream:
        final = list(stream)[-1]
        streamed = stream.get_final_response()
    assert final.type == "response.completed"

    def items(response: Any) -> list[dict[str, Any]]:
        extra = {"id", "call_id", "parsed_arguments"}
        return [item.model_dump(exclude=extra, exclude_none=True) for item in response.output]

    assert [item["type"] for item in items(whole)] == ["reasoning", "message", "function_call", "function_call"]
    assert [json.loads(item["arguments"]) for item in items(whole)[2:]] == [{"city": "Köln"}, {"a": 1}]
    assert whole.output_text == "One moment."
    assert [one["type"] for one in items(streamed)] == [one["type"] for one in items(whole)]
    assert [one.get("arguments") for one in items(streamed)] == [one.get("arguments") for one in items(whole)]
    assert streamed.output_text == whole.output_text
    assert whole.usage is not None
    assert whole.usage.output_tokens_details.reasoning_tokens == len("I must look.")


def test_events_are_numbered_and_of_the_clients_types(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    engine.answer = TWO_CALLS
    events = list(client.responses.create(model=MODEL, input="hi", tools=TOOLS, stream=True))
    for number, event in enumerate(events):
        dumped = event.model_dump()
        EVENT.validate_python(dumped)
        assert dumped["sequence_number"] == number
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    for index in range(4):
        mine = [event.type for event in events if getattr(event, "output_index", None) == index]
        assert (mine[0], mine[-1]) == ("response.output_item.added", "response.output_item.done")
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(texts) == "One moment."


def test_a_response_is_continued(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    first = create(client, input="one", instructions="Be brief.")
    engine.answer = "Second"
    second = create(client, input="two", previous_response_id=first.id)
    third = create(client, input=[{"role": "user", "content": "three"}], previous_response_id=second.id, store=False)
    assert prompt_of(engine) == ("<user>one<assistant>Hello world<user>two<assistant>Second<user>three<assistant>"), (
        "instructions are not carried over"
    )
    assert not engine.requests[-1].store
    with pytest.raises(openai.NotFoundError):
        create(client, previous_response_id=third.id)


def test_a_loop_of_two_tools_to_its_end_by_either_way(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    script = [
        '<think>hm</think><tool_call>{"name": "look", "arguments": {"city": "Oslo"}}</tool_call>',
        'Now:<tool_call>{"name": "add", "arguments": {"a": 20}}</tool_call>',
        "It is 21 degrees.",
    ]
    prompts = []
    for stateless in (True, False):
        said: Any = [{"role": "user", "content": "How warm is it?"}]
        previous: Any = {}
        for text in script:
            engine.answer = text
            response = create(client, input=said, tools=TOOLS, **previous)
            results = [
                {"type": "function_call_output", "call_id": item.call_id, "output": f"{item.name} {item.arguments}"}
                for item in response.output
                if item.type == "function_call"
            ]
            if stateless:
                said += [item.model_dump(exclude_none=True) for item in response.output] + results
            else:
                said, previous = results, {"previous_response_id": response.id}
        prompts.append(prompt_of(engine))
    assert (
        prompts[0]
        == prompts[1]
        == (
            'lookadd<user>How warm is it?<assistant>look<tool>look {"city": "Oslo"}'
            '<assistant>Now:add<tool>add {"a": 20}<assistant>'
        )
    )


def test_responses_are_retrieved_and_deleted_by_their_owner(client: openai.OpenAI) -> None:
    response = create(client)
    assert client.responses.retrieve(response.id).output_text == "Hello world"
    other = client.with_options(api_key="other")
    for act in (other.responses.retrieve, other.responses.delete):
        with pytest.raises(openai.NotFoundError):
            act(response.id)
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        (
            {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{"}]},
            "input[0].arguments",
        ),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"background": True, "store": False}, "background"),
        ({"truncation": "always"}, "truncation"),
        ({"include": ["mystery"]}, "include[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tools": TOOLS, "tool_choice": _allowed("auto", "other")}, "tool_choice"),
        ({"extra_body": {"mystery": 1}}, "mystery"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, **fields)
    assert refused.value.param is not None and refused.value.param.startswith(param)


def test_some_of_the_tools_may_be_called(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    response = create(client, tools=TOOLS, tool_choice=_allowed("required", "add"))
    assert response.tool_choice.model_dump() == _allowed("required", "add")  # type: ignore[union-attr]
    constraint = engine.requests[-1].constraint
    assert constraint is not None and '"add"' in constraint.text and '"look"' not in constraint.text
    assert prompt_of(engine).startswith("lookadd"), "the model is told of both"


def test_what_asks_for_nothing_of_this_server_is_accepted(client: openai.OpenAI) -> None:
    create(client, include=["reasoning.encrypted_content", "web_search_call.results"], max_tool_calls=3)
    assert create(client, reasoning={"effort": "low"}).reasoning.effort == "low"  # type: ignore[union-attr]


def test_log_probabilities_of_the_text() -> None:
    """The same whether streamed or whole."""
    engine = FakeEngineClient(answer="Hello world")
    with (
        serve(create_app(load_config(), engine, FakeCodec(), admin_token_sha256="")) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0, timeout=20) as client,
    ):
        asked: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
        response: Any = create(client, **asked)
        [text] = response.output[0].content
        assert "".join(one.token for one in text.logprobs) == text.text == "Hello world"
        assert all(len(one.top_logprobs) == 2 and one.logprob == -0.5 for one in text.logprobs)
        events = list(client.responses.create(model=MODEL, input="hi", stream=True, **asked))
        for event in events:
            EVENT.validate_python(event.model_dump())
        deltas: Any = [event for event in events if event.type == "response.output_text.delta"]
        assert all("".join(one.token for one in event.logprobs) == event.delta for event in deltas)
        last: Any = events[-1]
        assert last.response.output[0].content[0].logprobs == text.logprobs


@pytest.mark.parametrize("tokens_per_delta", [1, 3, 300])
def test_log_probabilities_beside_reasoning_and_calls_are_those_of_the_text(
    client: openai.OpenAI, engine: FakeEngineClient, tokens_per_delta: int
) -> None:
    """The text's letters are in the reasoning, the marks and the calls as well."""
    engine.tokens_per_delta = tokens_per_delta
    call = '<tool_call>{"name": "look", "arguments": {"hi": "hi"}}</tool_call>'
    engine.answer = f'<think>hi</think>\n\nhi <b>, <<tool"\n{call}\nhi too'
    asked: Any = {"tools": TOOLS, "include": ["message.output_text.logprobs"], "top_logprobs": 1}
    texts = ['hi <b>, <<tool"', "hi too"]

    def spelt(response: Any) -> list[str]:
        contents = [item.content[0] for item in response.output if item.type == "message"]
        assert [content.text.strip() for content in contents] == texts
        return ["".join(one.token for one in content.logprobs).strip() for content in contents]

    assert spelt(create(client, **asked)) == texts
    events: Any = list(client.responses.create(model=MODEL, input="hi", stream=True, **asked))
    assert spelt(events[-1].response) == texts
    for kind, index in (("response.output_text.delta", 1), ("response.output_text.delta", 3)):
        deltas = [event for event in events if event.type == kind and event.output_index == index]
        assert all("".join(one.token for one in event.logprobs).strip() == event.delta.strip() for event in deltas)


@pytest.mark.parametrize("num_turns", range(1, 12))
def test_the_oldest_turns_are_left_out_of_what_is_too_long(
    client: openai.OpenAI, engine: FakeEngineClient, num_turns: int
) -> None:
    """As few as it takes, and nothing of what the system says."""
    turns = [[_said("user", f"{at:02}" * 80), _said("assistant", "ok")] for at in range(num_turns)]
    items = [_said("developer", "Be brief."), *(item for turn in turns for item in turn), _said("user", "now")]
    response = create(client, input=items, truncation="auto")
    assert response.truncation == "auto"
    prompt = prompt_of(engine)
    kept = [at for at in range(num_turns) if f"{at:02}" * 80 in prompt]
    assert kept == list(range(num_turns - len(kept), num_turns)) and len(kept) == min(num_turns, 5)
    assert prompt.startswith("<system>Be brief.") and prompt.endswith("<user>now<assistant>")
    if len(kept) < num_turns:
        with pytest.raises(openai.BadRequestError) as refused:
            create(client, input=items)
        assert refused.value.code == "context_length_exceeded"


def test_one_turn_that_is_too_long_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        create(
            client, input=[_said("user", "a"), _said("assistant", "b"), _said("user", "x" * 1000)], truncation="auto"
        )
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")


def _said(role: str, text: str) -> Any:
    return {"role": role, "content": text}


def test_an_unknown_past_response_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        create(client, previous_response_id="resp_x")
    assert (refused.value.param, refused.value.code) == ("previous_response_id", "response_not_found")


def test_an_error_in_mid_stream(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    engine.fail_after = (2, EngineUnavailableError("no engine came back"))
    kinds: list[str] = []
    with pytest.raises(openai.APIError, match="no engine came back"):
        for event in client.responses.create(model=MODEL, input="hi", stream=True):
            kinds.append(event.type)
    assert kinds[0] == "response.created" and "response.completed" not in kinds


def stored(text: str) -> tuple[dict[str, Any], Any]:
    return {"id": text, "output": [], "user": "x" * 100}, ITEMS.validate_python([{"role": "user", "content": text}])


def test_the_store_forgets_what_was_not_used_for_longest() -> None:
    store = ResponseStore(1000)
    for name in "abcd":
        store.put("me", *stored(name))
    store.items("me", "a", "p")
    kept = []
    for name in "efgh":
        store.put("me", *stored(name))
        for one in "abcdefgh":
            try:
                kept.append(store.response("me", one)["id"])
            except ApiError as error:
                assert error.status == 404
    assert "h" in kept[-4:] and "b" not in kept
    assert store._num_bytes == sum(one.num_bytes for one in store._stored.values()) <= 1000
    store.put("me", {"id": "large", "output": [], "user": "x" * 2000}, [])
    store.put("me", {"id": "large", "output": []}, [], events=["x" * 2000])
    with pytest.raises(ApiError):
        store.response("me", "large")
    store.put("me", *stored("h"))  # again, as when two requests chose one id
    store.put("you", *stored("h"))  # another's, which is kept apart
    assert store._num_bytes == sum(one.num_bytes for one in store._stored.values()) <= 1000
    for owner, one in list(store._stored):
        store.delete(owner, one)
    assert store._num_bytes == 0


def test_a_store_of_no_bytes_keeps_nothing() -> None:
    store = ResponseStore(0)
    store.put("me", *stored("a"))
    with pytest.raises(ApiError):
        store.response("me", "a")
