from __future__ import annotations

import json
from typing import Any

import pytest

from osd.text.codec import TextCodec
from tests.kit.fakes import FakeCodec
from tests.kit.http_client import http_client
from tests.kit.tokenizer_kit import tokenizer_of

TOOLS = [{"type": "function", "function": {"name": "f"}}]
TURN = [{"role": "user", "content": "a"}]


def real_codec() -> TextCodec:
    return TextCodec(tokenizer_of("byte fallback"), model_id="fake-model", context_tokens=128)


async def test_a_text_there_and_back() -> None:
    codec = real_codec()
    async with http_client(codec=codec) as client:
        answer = (await client.post("/tokenize", json={"prompt": "hello world", "return_token_strs": True})).json()
        ids = answer["tokens"]
        text = (await client.post("/detokenize", json={"model": "fake-model", "tokens": ids})).json()
    assert ids == list(codec.encode_text("hello world"))
    assert answer == {
        "count": len(ids),
        "max_model_len": 128,
        "tokens": ids,
        "token_strs": [codec.token_text(token_id) for token_id in ids],
    }
    assert text == {"prompt": "hello world"}


async def test_special_tokens_of_a_text() -> None:
    """SPECIAL tokens are spelt out; what the tokenizer itself puts around a text can be left out."""
    codec = real_codec()
    codec.tokenizer.add_bos_token = True
    with_bos = codec.encode_text("hello")
    without = codec.encode_text("hello", add_special_tokens=False)
    assert with_bos == (codec.tokenizer.bos_token_id, *without)
    async with http_client(codec=codec) as client:
        for fields, ids in (({}, with_bos), ({"add_special_tokens": False}, without)):
            answer = await client.post("/tokenize", json={"prompt": "hello", **fields})
            assert answer.json()["tokens"] == list(ids)
        spelt = await client.post("/detokenize", json={"tokens": list(with_bos)})
    assert spelt.json()["prompt"].startswith("<s>")


async def test_a_conversation_as_chats_read_it() -> None:
    messages = [{"role": "user", "content": "hi"}]
    async with http_client() as client:
        answer = (await client.post("/tokenize", json={"messages": messages})).json()
    assert answer["tokens"] == list(FakeCodec().encode_chat(messages)) and answer["token_strs"] is None


async def test_special_tokens_around_prompts_and_conversations() -> None:
    """By default of a text, but not of a conversation."""
    tokenizer = tokenizer_of("byte fallback", "{% for m in messages %}{{ m.content }}{% endfor %}")
    tokenizer.add_bos_token = True
    codec = TextCodec(tokenizer, model_id="fake-model", context_tokens=128)
    whole, bare = codec.encode_text("hi"), list(codec.encode_text("hi", add_special_tokens=False))
    bos = whole[: len(whole) - len(bare)]
    assert bos, "this tokenizer puts something around a text"
    conversation = {"messages": [{"role": "user", "content": "hi"}]}
    async with http_client(codec=codec) as client:

        async def ids(route: str, body: dict[str, Any], **fields: Any) -> list[int]:
            answer = await client.post(route, json={**body, **fields})
            assert answer.status_code == 200, answer.text
            return list(answer.json().get("tokens") or answer.json()["prompt_token_ids"])

        assert await ids("/tokenize", {"prompt": "hi"}) == [*bos, *bare]
        assert await ids("/tokenize", conversation) == bare
        assert await ids("/tokenize", conversation, add_special_tokens=True) == [*bos, *bare]
        chat = {**conversation, "model": "fake-model", "return_token_ids": True}
        assert await ids("/v1/chat/completions", chat) == bare
        assert await ids("/v1/chat/completions", chat, add_special_tokens=True) == [*bos, *bare]
        for added, expected in ((True, [*bos, *bare]), (False, bare)):
            body = {"model": "fake-model", "prompt": "hi", "return_token_ids": True, "add_special_tokens": added}
            answer = (await client.post("/v1/completions", json=body)).json()
            assert answer["choices"][0]["prompt_token_ids"] == expected


@pytest.mark.parametrize(
    ("path", "body", "param", "said"),
    [
        ("/tokenize", {}, "prompt", "messages"),
        ("/tokenize", {"prompt": "a", "messages": TURN}, "messages", "either"),
        ("/tokenize", {"messages": TURN, "tools": TOOLS}, "tools", "no tools"),
        ("/tokenize", {"prompt": "\ud800"}, "prompt", "surrogate"),
        ("/detokenize", {"tokens": [1, 0x3000]}, "tokens", "12288"),
        ("/detokenize", {"tokens": [-1]}, "tokens", "-1"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]", "tokens[0]"),
        ("/detokenize", {"tokens": [10**30]}, "tokens", "tokens"),
    ],
)
async def test_what_does_not_fit_is_refused(path: str, body: dict[str, Any], param: str, said: str) -> None:
    async with http_client() as client:
        answer = await client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and said in error["message"]


async def test_another_model_is_not_found() -> None:
    async with http_client() as client:
        answer = await client.post("/tokenize", json={"model": "gpt-4", "prompt": "a"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, "<user>hi<assistant>"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, '<user>hi{"enable_thinking": false}<assistant>'),
        ({"add_generation_prompt": False}, "<user>hi"),
        ({"continue_final_message": True}, "<user>hi"),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
            '<user>hi{"reasoning_effort": "low", "enable_thinking": false}<assistant>',
        ),
        ({"documents": [{"text": "a"}]}, '<user>hi{"documents": [{"text": "a"}]}<assistant>'),
    ],
)
async def test_what_a_template_is_told(fields: dict[str, Any], end: str) -> None:
    """By chats and, where it has the fields, by /tokenize alike."""
    body = {"messages": [{"role": "user", "content": "hi"}], "model": "fake-model", **fields}
    async with http_client() as client:
        chat = await client.post("/v1/chat/completions", json={**body, "return_prompt_text": True})
        assert chat.json()["prompt_text"] == end
        if not fields.keys() & {"reasoning_effort", "documents"}:
            tokens = (await client.post("/tokenize", json=body)).json()["tokens"]
            assert FakeCodec().decode(tokens) == end


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        ({"reasoning_effort": "some"}, "reasoning_effort"),
    ],
)
async def test_what_a_template_is_not_told(fields: dict[str, Any], param: str) -> None:
    async with http_client() as client:
        body = {"messages": [{"role": "user", "content": "hi"}], "model": "fake-model", **fields}
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
