"""Clients and agent frameworks of others. Each test runs where its package is installed (docs/clients.md)."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import subprocess
import warnings
from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from osd.config.settings import load_config
from osd.records.query import Request, TokenDelta
from osd.text.chat_template import ChatFeatures
from serving.app import create_app
from tests.kit.fakes import FakeCodec, FakeEngineClient
from tests.kit.http_server import serve
from tests.kit.local_client import local_client
from tests.kit.tokenizer_kit import tokenizer_of

pytestmark = pytest.mark.filterwarnings("default")  # theirs are not ours to mend
_FEATURES = ChatFeatures(tools=True, calls=True, call_format="hermes")
_LOOP = [
    '<tool_call>{"name": "look_up", "arguments": {"city": "Oslo"}}</tool_call>',
    '<tool_call>{"name": "add", "arguments": {"a": 20, "b": 1}}</tool_call>',
    "It is 21 degrees.",
]
"""The answers of a model that calls two tools, one after the other."""


class Weather(BaseModel):
    """What a random model fills in."""

    city: Literal["Oslo", "Bonn"]
    is_cold: bool


class _Scripted(FakeEngineClient):
    """Gives the answers of `_LOOP`, by the number of tool results that the prompt holds."""

    async def generate(self, request: Request) -> AsyncIterator[TokenDelta]:
        prompt = FakeCodec().decode(request.prompt_ids)
        self.answer = _LOOP[min(prompt.count("<tool>"), 2)]
        async for delta in super().generate(request):
            yield delta


@pytest.fixture(scope="module")
def scripted() -> Iterator[str]:
    codec = FakeCodec(features=_FEATURES, context_tokens=2000)
    with serve(create_app(load_config(), _Scripted(), codec, admin_token_sha256="")) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def random() -> Iterator[str]:
    with (
        local_client() as (client, codec),
        serve(create_app(load_config(), client, codec, admin_token_sha256="")) as url,
    ):
        yield f"{url}/v1"


@pytest.fixture(scope="module", autouse=True)
def left_open() -> Iterator[None]:
    """Connections and event loops that clients leave open are collected here, without the warnings that end a run."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def _package(name: str) -> Any:
    return pytest.importorskip(name, exc_type=ImportError) and import_module(name)


def look_up(city: str) -> str:
    """The temperature of a city."""
    return f"20 in {city}"


def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


def test_langchain(scripted: str, random: str) -> None:
    chat = _package("langchain_openai").ChatOpenAI
    tools = [_package("langchain_core.tools").tool(one) for one in (look_up, add)]
    by_name = {tool.name: tool for tool in tools}
    model = chat(model="fake-model", base_url=scripted, api_key="none").bind_tools(tools)
    messages: list[Any] = [("user", "How warm is it?")]
    for _ in range(3):
        answer = model.invoke(messages)
        messages.append(answer)
        messages += [by_name[call["name"]].invoke(call) for call in answer.tool_calls]
    assert messages[-1].content == "It is 21 degrees."
    structured = chat(model="tiny", base_url=random, api_key="none").with_structured_output(Weather)
    assert isinstance(structured.invoke("How warm is it?"), Weather)
    called = chat(model="tiny", base_url=random, api_key="none").with_structured_output(
        Weather, method="function_calling", strict=True
    )
    assert isinstance(called.invoke("How warm is it?"), Weather)


def test_litellm(scripted: str, random: str) -> None:
    completion = _package("litellm").completion
    messages = [{"role": "user", "content": "How warm is it?"}]
    answer = completion(model="openai/fake-model", api_base=scripted, api_key="none", messages=messages)
    assert answer.choices[0].message.content == _LOOP[0]
    tiny: dict[str, Any] = {"model": "openai/tiny", "api_base": random, "api_key": "none", "messages": messages}
    stream = completion(**tiny, stream=True, max_tokens=9)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    answer = completion(**tiny, response_format=Weather)
    Weather.model_validate_json(answer.choices[0].message.content)


def test_instructor(random: str) -> None:
    instructor = _package("instructor")
    client = openai.OpenAI(base_url=random, api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "How warm is it?"}]
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        made = instructor.from_openai(client, mode=mode).chat.completions.create(
            model="tiny", response_model=Weather, max_retries=0, messages=messages
        )
        assert isinstance(made, Weather)


def test_pydantic_ai(scripted: str) -> None:
    agents = _package("pydantic_ai")
    models, providers = _package("pydantic_ai.models.openai"), _package("pydantic_ai.providers.openai")
    provider = providers.OpenAIProvider(base_url=scripted, api_key="none")
    agent = agents.Agent(models.OpenAIChatModel("fake-model", provider=provider), tools=[look_up, add])
    assert agent.run_sync("How warm is it?").output == "It is 21 degrees."


def test_openai_agents(scripted: str) -> None:
    agents = _package("agents")
    agents.set_tracing_disabled(True)
    for kind in (agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel):
        client = openai.AsyncOpenAI(base_url=scripted, api_key="none", max_retries=0)  # of one event loop
        agent = agents.Agent(
            name="thermometer",
            instructions="Look, then add.",
            model=kind(model="fake-model", openai_client=client),
            tools=[agents.function_tool(one, strict_mode=False) for one in (look_up, add)],
        )
        result = asyncio.run(agents.Runner.run(agent, "How warm is it?"))
        assert result.final_output == "It is 21 degrees."


def test_llm(scripted: str) -> None:
    chat = _package("llm.default_plugins.openai_models").Chat
    model = chat("osd", model_name="fake-model", api_base=scripted)
    assert model.prompt("How warm is it?", key="none", stream=False).text() == _LOOP[0]
    assert model.prompt("How warm is it?", key="none", stream=True).text() == _LOOP[0]


def test_lm_eval(random: str, tmp_path: Path) -> None:
    """The log-likelihood of a continuation is the sum of its tokens' log-probabilities."""
    lm = _package("lm_eval.models.openai_completions").LocalCompletionsAPI
    instance = _package("lm_eval.api.instance").Instance
    tokenizer = tokenizer_of("byte-level")
    tokenizer.save_pretrained(tmp_path)
    evaluated = lm(base_url=f"{random}/completions", model="tiny", tokenizer=str(tmp_path), max_length=512)
    [(found, _)] = evaluated.loglikelihood([instance("loglikelihood", {}, ("It was", " a cold day"), 0)])
    context, whole = (tokenizer(text)["input_ids"] for text in ("It was", "It was a cold day"))
    client = openai.OpenAI(base_url=random, api_key="none", max_retries=0)
    echoed = client.completions.create(model="tiny", prompt=whole, max_tokens=1, logprobs=1, echo=True)
    logprobs: Any = echoed.choices[0].logprobs
    assert found == pytest.approx(sum(logprobs.token_logprobs[len(context) : -1]), abs=1e-3)


_NODE = """
const OpenAI = require('openai');
const client = new OpenAI({baseURL: process.argv[1], apiKey: 'none', maxRetries: 0});
const tools = ['look_up', 'add'].map((name) => ({type: 'function', function: {name, parameters: {type: 'object'}}}));
const run = {look_up: ({city}) => `20 in ${city}`, add: ({a, b}) => String(a + b)};
(async () => {
  const messages = [{role: 'user', content: 'How warm is it?'}];
  for (let turn = 0; turn < 3; turn++) {
    const stream = client.chat.completions.stream({model: 'fake-model', messages, tools});
    const message = (await stream.finalChatCompletion()).choices[0].message;
    messages.push(message);
    for (const call of message.tool_calls ?? [])
      messages.push({role: 'tool', tool_call_id: call.id,
        content: run[call.function.name](JSON.parse(call.function.arguments))});
  }
  const response = await client.responses.create({model: 'fake-model', input: 'How warm is it?'});
  console.log(JSON.stringify([messages.at(-1).content, response.output_text]));
})();
"""


def test_openai_for_node(scripted: str) -> None:
    """NODE_PATH names the folder of its packages."""
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require.resolve('openai')"], capture_output=True).returncode:
        pytest.skip("node, or its package openai, is not there")
    done = subprocess.run([node, "-e", _NODE, scripted], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["It is 21 degrees.", _LOOP[0]]
