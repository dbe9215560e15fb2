"""What the HTTP front refuses, with the tokenizer of a saved model rather than one of characters."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from osd.config.settings import load_config
from osd.text.codec import TextCodec
from serving.app import create_app
from tests.kit.fakes import FakeEngineClient
from tests.kit.saved_models import save_llama

CONTEXT_TOKENS = 48
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec.open(save_llama(tmp_path_factory.mktemp("models") / "tiny"), "tiny", CONTEXT_TOKENS)


async def post(codec: TextCodec, path: str, engine: FakeEngineClient | None = None, **fields: Any) -> httpx.Response:
    app = create_app(load_config(), engine or FakeEngineClient(), codec, admin_token_sha256="")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://osd.test") as client:
        return await client.post(path, json={"model": "tiny", **fields})


@pytest.mark.parametrize(
    ("path", "fields", "param", "num_tokens"),
    [
        ("/v1/completions", {"prompt": "é" * 30}, "prompt", 60),
        ("/v1/completions", {"prompt": [7] * 61}, "prompt", 61),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x" * 60}]},
            "messages",
            len("user: " + "x" * 60 + "\nassistant:"),
        ),
    ],
)
async def test_a_prompt_longer_than_the_context(
    codec: TextCodec, path: str, fields: dict[str, Any], param: str, num_tokens: int
) -> None:
    answer = await post(codec, path, **fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, "context_length_exceeded")
    assert str(num_tokens) in error["message"] and str(CONTEXT_TOKENS) in error["message"]


async def test_token_ids_beyond_the_vocabulary(codec: TextCodec) -> None:
    answer = await post(codec, "/v1/completions", prompt=[codec.vocab_tokens])
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "prompt"


@pytest.mark.parametrize("text", ["plain", "é🎈\x00\u2028", "<|end|>"])
async def test_text_reaches_the_engine_as_tokens(codec: TextCodec, text: str) -> None:
    engine = FakeEngineClient(answer="ok")
    answer = await post(codec, "/v1/completions", engine, prompt=text)
    assert answer.status_code == 200, answer.text
    assert engine.requests[0].prompt_ids == codec.encode_text(text)
    assert codec.tokenizer.decode(engine.requests[0].prompt_ids) == text


async def test_chat_goes_through_the_template(codec: TextCodec) -> None:
    engine = FakeEngineClient(answer="ok")
    answer = await post(codec, "/v1/chat/completions", engine, messages=MESSAGES)
    assert answer.status_code == 200, answer.text
    assert codec.tokenizer.decode(engine.requests[0].prompt_ids) == "user: hi\nassistant:"
