"""The official `openai` client against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from http.client import HTTPConnection

import openai
import pytest

from osd.config.settings import load_config
from osd.records.errors import EngineUnavailableError, QueueFullError
from serving.app import create_app
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_server import serve
from tests.kit.waiting import wait_for

MODEL = "org/fake-model"
MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def engine() -> FakeEngineClient:
    return FakeEngineClient()


@pytest.fixture
def client(engine: FakeEngineClient) -> Iterator[openai.OpenAI]:
    config = load_config(flags={"server": {"api_keys_sha256": [sha256(b"key").hexdigest()]}})
    with (
        serve(create_app(config, engine, FakeCodec(model_id=MODEL), admin_token_sha256="")) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0, timeout=20) as client,
    ):
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.usage.total_tokens) == (11, 11 + len("<user>hi<assistant>"))
    assert answer.model_extra is not None
    assert answer.model_extra["osd"]["acceptance_length"] == 2.5
    assert answer._request_id


def test_chat_stream_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello world"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage is not None and last.usage.completion_tokens == 11
    assert last.model_extra is not None and last.model_extra["osd"]["rounds"] == 4


def test_chat_choices_and_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, n=3, logprobs=True, top_logprobs=3, max_completion_tokens=4
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert choice.finish_reason == "length" and choice.message.content == "Hell"
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert "".join(token.token for token in choice.logprobs.content) == "Hell"
        first = choice.logprobs.content[0]
        assert (first.logprob, first.bytes) == (-0.5, [72])
        assert [top.logprob for top in first.top_logprobs] == [-0.5, -1.5, -9999.0]


def test_chat_logprobs_in_a_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, stream=True)
    tokens = [
        token.token
        for chunk in stream
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content or ()
    ]
    assert "".join(tokens) == "Hello world"


def test_stop(client: openai.OpenAI) -> None:
    for stop in (" w", [" w", "never"]):
        answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, stop=stop)
        assert answer.choices[0].message.content == "Hello"
        assert answer.choices[0].finish_reason == "stop"


def test_extra_fields(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "osd": {"domain": "code", "speculation_length": 2}}
    client.chat.completions.create(model=MODEL, messages=MESSAGES, store=False, seed=1, extra_body=extra)
    (query,) = engine.requests
    assert (query.params.top_k, query.params.min_p, query.params.seed) == (5, 0.1, 1)
    assert (query.domain, query.speculation_length, query.store) == ("code", 2, False)


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    message = answer.choices[0].message
    follow_up = client.chat.completions.create(
        model=MODEL,
        messages=[*MESSAGES, message.model_dump(), {"role": "user", "content": "more"}],  # type: ignore[list-item]  # as people do
    )
    assert follow_up.choices[0].message.content == "Hello world"


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["ab", "cd"], n=2, logprobs=2, max_tokens=5)
    assert [choice.text for choice in answer.choices] == ["Hello"] * 4
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == list("Hello")
    assert logprobs.text_offset == [0, 1, 2, 3, 4]
    assert logprobs.top_logprobs is not None and logprobs.top_logprobs[0] == {"H": -0.5, "I": -1.5}


def test_completions_stream(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model=MODEL, prompt=[1, 2, 3], stream=True, logprobs=0))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello world"
    offsets = [offset for chunk in chunks if (one := chunk.choices[0].logprobs) for offset in one.text_offset or ()]
    assert offsets == list(range(11))


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_refusals_are_the_clients_exceptions(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    def ask(model: str = MODEL, **fields: object) -> None:
        client.chat.completions.create(model=model, messages=MESSAGES, extra_body=fields)

    with pytest.raises(openai.BadRequestError) as refused:
        ask(watermarking=True)
    assert (refused.value.param, refused.value.code) == ("watermarking", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        ask(max_tokens=0)
    with pytest.raises(openai.NotFoundError):
        ask(model="gpt-4")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    engine.refuse = QueueFullError("256 queries wait")
    with pytest.raises(openai.RateLimitError):
        ask()
    engine.refuse = EngineUnavailableError("restarting")
    with pytest.raises(openai.InternalServerError) as unavailable:
        ask()
    assert unavailable.value.status_code == 503


def test_an_error_in_mid_stream(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    engine.fail_after = (2, EngineUnavailableError("no engine came back"))
    texts = []
    with pytest.raises(openai.APIError, match="no engine came back"):
        for chunk in client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
            texts.append(chunk.choices[0].delta.content or "")
    assert "".join(texts) == "Hell"


def test_hanging_up_in_mid_stream_cancels(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    engine.pause_after = 2
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    assert next(iter(stream)).choices[0].delta.role == "assistant"
    stream.close()
    wait_for(lambda: engine.closed, "the query to be cancelled")


def test_hanging_up_while_waiting_cancels(client: openai.OpenAI, engine: FakeEngineClient) -> None:
    """No byte of the answer was sent yet, and it is not even streamed."""
    engine.pause_after = 0
    url = client.base_url
    connection = HTTPConnection(url.host, url.port, timeout=20)
    headers = {"Authorization": f"Bearer {client.api_key}", "Content-Type": "application/json"}
    body = json.dumps({"model": MODEL, "messages": MESSAGES})
    connection.request("POST", f"{url.path}chat/completions", body, headers)
    wait_for(engine.paused.is_set, "the query to reach the engine")
    assert not engine.closed
    connection.close()
    wait_for(lambda: engine.closed, "the query to be cancelled")
