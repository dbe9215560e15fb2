"""Fields that only chats have: some of the tools, and an echo."""

from __future__ import annotations

import json

from serving.wire.chat_request import ChatRequest
from tests.kit.http_client import CHAT, http_client


def test_some_of_the_tools_may_be_called() -> None:
    """The model is told of all of them, and its calls are constrained to those that are allowed."""
    tools = [{"type": "function", "function": {"name": name}} for name in "fgh"]
    for mode, must_call in (("auto", False), ("required", True)):
        choice = {"mode": mode, "tools": [tools[2], tools[0]]}
        asked = {**CHAT, "tools": tools, "tool_choice": {"type": "allowed_tools", "allowed_tools": choice}}
        body = ChatRequest.model_validate(asked)
        assert [tool.name for tool in body.offered_tools] == ["f", "g", "h"]
        assert [tool.name for tool in body.callable_tools] == ["f", "h"]
        assert body.enforces_calls and body.must_call == must_call


async def test_an_echo_begins_with_the_assistants_last_message() -> None:
    """Of both ways to answer; not with another's message."""
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well, "}]
    async with http_client() as client:
        body = {**CHAT, "messages": said, "echo": True}
        whole = (await client.post("/v1/chat/completions", json=body)).json()
        assert whole["choices"][0]["message"]["content"] == "Well, Hello world"
        streamed = (await client.post("/v1/chat/completions", json={**body, "stream": True})).text
        events = [json.loads(line[6:]) for line in streamed.split("\n\n")[:-2]]
        pieces = [event["choices"][0]["delta"].get("content", "") for event in events]
        assert "".join(pieces) == "Well, Hello world"
        users = (await client.post("/v1/chat/completions", json={**CHAT, "echo": True})).json()
        assert users["choices"][0]["message"]["content"] == "Hello world"
