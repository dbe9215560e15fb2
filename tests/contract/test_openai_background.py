"""Responses in the background, their events, input items and token counts, with the official `openai` client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import TypeAdapter

from osd.config.settings import load_config
from osd.records.errors import QueueFullError
from osd.records.query import Request, TokenDelta
from osd.text.chat_template import ChatFeatures
from serving.app import create_app
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_server import serve
from tests.kit.waiting import wait_for

MODEL = "fake-model"
FEATURES = ChatFeatures(tools=True, calls=True, call_format="hermes", reasoning=True)
KEYS = ("key", "other")
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)
TOOLS: Any = [{"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}]


@dataclass(kw_only=True)
class GatedEngine(FakeEngineClient):
    """One that is let go from another thread than the server's."""

    loop: asyncio.AbstractEventLoop | None = None

    async def generate(self, request: Request) -> AsyncIterator[TokenDelta]:
        self.loop = asyncio.get_running_loop()
        async for delta in super().generate(request):
            yield delta

    def let_go(self) -> None:
        wait_for(self.paused.is_set, "the query to pause")
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.go_on.set)


@contextmanager
def served(engine: FakeEngineClient, **server: Any) -> Iterator[openai.OpenAI]:
    keys = [sha256(key.encode()).hexdigest() for key in KEYS]
    config = load_config(flags={"server": {"api_keys_sha256": keys, **server}})
    app = create_app(config, engine, FakeCodec(features=FEATURES, context_tokens=1000), admin_token_sha256="")
    with (
        serve(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0, timeout=20) as client,
    ):
        yield client


def begin(client: openai.OpenAI, **fields: Any) -> Response:
    response: Response = client.responses.create(**{"model": MODEL, "input": "hi", "background": True, **fields})
    return checked(response)


def checked(response: Response) -> Response:
    Response.model_validate(response.model_dump())  # the client builds its types unchecked
    return response


def ended(client: openai.OpenAI, response_id: str) -> Response:
    wait_for(lambda: client.responses.retrieve(response_id).status not in ("queued", "in_progress"), "the response")
    return checked(client.responses.retrieve(response_id))


def test_a_response_is_made_while_nobody_waits() -> None:
    engine = GatedEngine(pause_after=0)
    with served(engine) as client:
        first = begin(client, instructions="Be brief.")
        assert (first.status, first.background, first.output) == ("queued", True, [])
        assert checked(client.responses.retrieve(first.id)).status == "queued"
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(model=MODEL, input="more", previous_response_id=first.id)
        assert refused.value.param == "previous_response_id"
        engine.let_go()
        done = ended(client, first.id)
        assert (done.status, done.output_text, done.id) == ("completed", "Hello world", first.id)
        assert done.usage is not None and done.usage.output_tokens == 11
        client.responses.create(model=MODEL, input="more", previous_response_id=first.id)
        prompt = "".join(map(chr, engine.requests[-1].prompt_ids))
        assert prompt == "<user>hi<assistant>Hello world<user>more<assistant>"


def test_a_stream_is_left_and_taken_up_again_while_it_is_made_and_later() -> None:
    engine = GatedEngine(pause_after=2)
    with served(engine) as client:
        stream: Any = client.responses.create(model=MODEL, input="hi", background=True, stream=True)
        seen = [next(stream) for _ in range(3)]
        stream.close()
        assert [event.type for event in seen] == ["response.created", "response.queued", "response.in_progress"]
        assert seen[0].response.status == "queued" and seen[2].response.status == "in_progress"
        response_id = seen[0].response.id
        again: Any = client.responses.retrieve(response_id, stream=True, starting_after=2)
        fourth = next(again)
        engine.let_go()
        rest = [fourth, *again]
        events = [*seen, *rest]
        for number, event in enumerate(events):
            EVENT.validate_python(event.model_dump())
            assert event.sequence_number == number
        assert events[-1].type == "response.completed" and events[-1].response.output_text == "Hello world"
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello world"
        later: Any = list(client.responses.retrieve(response_id, stream=True))
        assert [event.model_dump() for event in later] == [event.model_dump() for event in events]
        with client.responses.stream(response_id=response_id, starting_after=5) as helper:
            assert [event.sequence_number for event in helper][0] == 6


def test_one_is_cancelled_where_it_is() -> None:
    engine = GatedEngine(pause_after=2)
    with served(engine) as client:
        running = begin(client)
        wait_for(engine.paused.is_set, "the query to pause")
        assert client.responses.retrieve(running.id).status == "in_progress"
        cancelled = checked(client.responses.cancel(running.id))
        assert (cancelled.status, cancelled.output_text) == ("cancelled", "Hell")
        assert cancelled.output[0].status == "incomplete"  # type: ignore[union-attr]
        assert engine.closed == [engine.requests[0].request_id]
        for answer in (client.responses.cancel(running.id), client.responses.retrieve(running.id)):
            assert answer.model_dump() == cancelled.model_dump()
        engine.pause_after = None
        plain = client.responses.create(model=MODEL, input="hi")
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.cancel(plain.id)
        assert refused.value.param == "response_id"
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.retrieve(plain.id, stream=True)
        assert refused.value.param == "stream"
        with pytest.raises(openai.NotFoundError):
            client.responses.cancel("resp_x")


def test_one_that_is_deleted_is_cancelled_first() -> None:
    engine = GatedEngine(pause_after=1)
    with served(engine) as client:
        running = begin(client)
        wait_for(engine.paused.is_set, "the query to pause")
        for act in (
            client.with_options(api_key="other").responses.retrieve,
            client.with_options(api_key="other").responses.cancel,
        ):
            with pytest.raises(openai.NotFoundError):
                act(running.id)
        client.responses.delete(running.id)
        assert engine.closed == [engine.requests[0].request_id]
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(running.id)


def test_an_error_is_told_by_the_response() -> None:
    engine = FakeEngineClient(refuse=QueueFullError("the queue is full"))
    with served(engine) as client:
        failed = ended(client, begin(client).id)
        assert failed.status == "failed" and failed.error is not None
        assert (failed.error.code, failed.error.message) == ("rate_limit_exceeded", "the queue is full")
        events: Any = list(client.responses.retrieve(failed.id, stream=True))
        assert events[-1].type == "response.failed" and events[-1].response.error.code == "rate_limit_exceeded"
        engine.refuse, engine.fail_after = None, (2, RuntimeError("a secret"))
        broken = ended(client, begin(client).id)
        assert broken.status == "failed" and broken.output_text == "Hell"
        assert broken.error is not None and broken.error.code == "server_error" and "secret" not in broken.error.message


def test_there_are_as_many_at_once_as_the_server_allows() -> None:
    engine = GatedEngine(pause_after=0)
    with served(engine, background_responses=1) as client:
        first = begin(client, extra_body={"request_id": "mine"})
        with pytest.raises(openai.RateLimitError) as full:
            begin(client)
        assert full.value.code == "queue_full" and int(full.value.response.headers["retry-after"]) > 0
        with pytest.raises(openai.BadRequestError) as taken:
            client.responses.create(model=MODEL, input="hi", extra_body={"request_id": "mine"})
        assert taken.value.param == "request_id"
        engine.let_go()
        assert ended(client, first.id).status == "completed"
        assert ended(client, begin(client).id).status == "completed"


@pytest.mark.parametrize("server", [{"background_responses": 0}, {"stored_responses_bytes": 0}])
def test_a_server_may_offer_none(server: dict[str, Any]) -> None:
    with served(FakeEngineClient(), **server) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            begin(client)
        assert (refused.value.param, refused.value.code) == ("background", "unsupported_parameter")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"stream": "maybe"}, "stream"),
        ({"starting_after": 1}, "starting_after"),
        ({"stream": True, "starting_after": -1}, "starting_after"),
        ({"include_obfuscation": True}, "include_obfuscation"),
    ],
)
def test_a_query_that_cannot_be_honoured_is_refused_by_name(query: dict[str, Any], param: str) -> None:
    with served(FakeEngineClient()) as client:
        response = begin(client)
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.retrieve(response.id, extra_query=query)
    assert refused.value.param == param


def test_input_items_are_listed_page_by_page() -> None:
    engine = FakeEngineClient(answer='<think>hm</think>Look:<tool_call>{"name": "look", "arguments": {}}</tool_call>')
    with served(engine) as client:
        first = client.responses.create(
            model=MODEL,
            tools=TOOLS,
            input=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "one"}],
        )
        call = next(item for item in first.output if item.type == "function_call")
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "green"}
        second = client.responses.create(model=MODEL, input=[result], previous_response_id=first.id)
        page = client.responses.input_items.list(second.id, order="asc", limit=2)
        listed: list[Any] = list(page)  # the client asks for further pages
        for item in listed:
            ITEM.validate_python(item.model_dump())
        kinds = [item.type for item in listed]
        assert kinds == ["message", "message", "reasoning", "message", "function_call", "function_call_output"]
        assert len({item.id for item in listed}) == 6 and len(page.data) == 2 and page.has_more
        assert [item.id for item in client.responses.input_items.list(second.id)] == [
            one.id for one in reversed(listed)
        ]
        assert [item.id for item in listed[2:5]] == [item.id for item in first.output]
        assert listed[1].content[0].text == "one" and listed[5].output[0].text == "green"
        for query, param in (({"after": "x"}, "after"), ({"limit": 101}, "limit"), ({"order": "up"}, "order")):
            with pytest.raises(openai.BadRequestError) as refused:
                client.responses.input_items.list(second.id, extra_query=query)
            assert refused.value.param == param
        with pytest.raises(openai.NotFoundError):
            client.with_options(api_key="other").responses.input_items.list(second.id)


def test_input_tokens_are_those_that_the_response_counts() -> None:
    with served(FakeEngineClient()) as client:
        first = client.responses.create(model=MODEL, input="one")
        asked: Any = {
            "model": MODEL,
            "input": [{"role": "user", "content": "two"}],
            "instructions": "Be brief.",
            "previous_response_id": first.id,
            "tools": TOOLS,
            "reasoning": {"effort": "low"},
        }
        counted = client.responses.input_tokens.count(**asked)
        response = client.responses.create(**asked)
        assert response.usage is not None
        assert (counted.object, counted.input_tokens) == ("response.input_tokens", response.usage.input_tokens)
        long: Any = [{"role": "user", "content": "x" * 800}, {"role": "user", "content": "y" * 800}]
        assert client.responses.input_tokens.count(input=long).input_tokens > 1600
        assert client.responses.input_tokens.count(input=long, truncation="auto").input_tokens < 1000
        for fields, param in (({}, "input"), ({"input": "hi", "personality": "friendly"}, "personality")):
            with pytest.raises(openai.BadRequestError) as refused:
                client.responses.input_tokens.count(**fields)  # type: ignore[arg-type]
            assert refused.value.param == param
