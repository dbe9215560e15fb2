"""docs/api.md lists every field of a request, and of those that osd lacks the values that ask for nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from osd.config.settings import load_config
from serving.app import create_app
from serving.messages.request import MessagesRequest
from serving.responses.request import InputTokensRequest, ResponsesRequest
from serving.routes.tokenize import DetokenizeRequest, TokenizeRequest
from serving.wire.chat_request import ChatRequest, Message, TextPart
from serving.wire.completions_request import CompletionRequest
from serving.wire.inert_fields import NoEffect
from serving.wire.request_base import GenerationFields, OsdOptions, StreamOptions
from serving.wire.tools import CalledFunction, Function, Tool, ToolCall
from tests.kit.fakes import FakeCodec, FakeEngineClient

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")


def fields_of(model: type[BaseModel], *, besides: type[BaseModel] | None = None) -> dict[str, str | None]:
    """Field to the JSON values that change nothing; None for a field that osd implements."""
    found: dict[str, str | None] = {}
    for name, info in model.model_fields.items():
        if besides is None or name not in besides.model_fields:
            inert = [one for one in info.metadata if isinstance(one, NoEffect)]
            found[name] = inert[0].accepted if inert else None
    return found


def rows_of(heading: str) -> dict[str, str]:
    """First and second column of the tables under a heading."""
    section = re.split(r"^#+ ", PAGE.split(f"## {heading}\n")[1], flags=re.M)[0]
    return dict(re.findall(r"^\| `([a-z_.]+)` \| (.*?) \|", section, flags=re.M))


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("Both", fields_of(GenerationFields)),
        ("Chat completions", fields_of(ChatRequest, besides=GenerationFields)),
        ("Completions", fields_of(CompletionRequest, besides=GenerationFields)),
        ("A message", fields_of(Message)),
        ("A part of a message's content", fields_of(TextPart)),
        ("A tool, and its function", fields_of(Tool) | fields_of(Function)),
        ("A tool call, and its function", fields_of(ToolCall) | fields_of(CalledFunction)),
        ("`/v1/responses`", fields_of(ResponsesRequest)),
        ("`/v1/responses/input_tokens`", fields_of(InputTokensRequest)),
        ("`/v1/messages`", fields_of(MessagesRequest)),
        ("`/tokenize`", fields_of(TokenizeRequest)),
        ("`/detokenize`", fields_of(DetokenizeRequest)),
        ("`stream_options`", fields_of(StreamOptions)),
        ("`osd`", fields_of(OsdOptions)),
    ],
)
def test_the_page_lists_every_field(heading: str, fields: dict[str, str | None]) -> None:
    rows = rows_of(heading)
    assert set(rows) == set(fields)
    for name, accepted in fields.items():
        if accepted is not None:
            said = f"only `{accepted}`".replace(" or ", "` or `") if accepted else "refused"
            assert rows[name] == said, name


def test_the_page_lists_every_route() -> None:
    app = create_app(load_config(), FakeEngineClient(), FakeCodec(), admin_token_sha256="")
    for path in app.openapi()["paths"]:
        assert f"`{path}`" in PAGE.replace("{id}", "{model_id}"), path


VLLM = json.loads((Path(__file__).parent / "vllm_fields.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("kind", "model"), [("chat", ChatRequest), ("completion", CompletionRequest), ("responses", ResponsesRequest)]
)
def test_every_field_of_vllm_is_known(kind: str, model: type[BaseModel]) -> None:
    """And of those that osd does not implement, the page says why."""
    assert set(VLLM[kind]) <= set(model.model_fields)
    section = PAGE.split("### What vLLM has, and osd lacks\n")[1].split("\n## ")[0]
    told = {name for row in re.findall(r"^\| (`.*?) \|", section, flags=re.M) for name in re.findall(r"`(\w+)`", row)}
    lacking = {name for name, accepted in fields_of(model).items() if accepted is not None and name in VLLM[kind]}
    assert lacking <= told
    assert told <= {name for names in VLLM.values() for name in names}


def test_every_stream_option_of_vllm_is_known() -> None:
    assert set(VLLM["stream_options"]) <= {name for name, only in fields_of(StreamOptions).items() if only is None}
