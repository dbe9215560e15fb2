"""`osd bench`: the benchmarks of this project that need nothing but a server, of any kind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import httpx
import openai
import typer
from rich.console import Console

from osd.records.errors import OsdError

if TYPE_CHECKING:
    from serving.bench.load import LoadResult

_T = TypeVar("_T")
_BaseUrl = Annotated[str, typer.Option(help="The server; without a path, /v1 is added.")]
_Model = Annotated[str | None, typer.Option(help="Model to ask for; default: the first that it lists.")]
_MaxTokens = Annotated[int, typer.Option(help="Longest answer.")]
_ApiKey = Annotated[str, typer.Option(help="API key, if the server asks for one.", envvar="OPENAI_API_KEY")]

app = typer.Typer(help="Measure a server that speaks OpenAI's API.")


@app.callback()
def bench() -> None:
    """Measure a server that speaks OpenAI's API."""


@app.command("serve")
def serve(
    base_url: _BaseUrl = "http://127.0.0.1:8000",
    model: _Model = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help='JSONL of {"prompt": …} or {"messages": […]} lines; default: sixteen short questions.'),
    ] = None,
    clients: Annotated[str, typer.Option(help="Closed loops: clients at once, with commas.")] = "1,4,16",
    rates: Annotated[str, typer.Option(help="Open loops: queries a second, with commas.")] = "",
    queries: Annotated[int, typer.Option(help="Queries of each load, at least.")] = 32,
    max_tokens: _MaxTokens = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    api_key: _ApiKey = "none",
    body: Annotated[str, typer.Option(help='Further fields of every request, as JSON: {"ignore_eos": true}.')] = "{}",
) -> None:
    """Time to first token, time per token, tokens/s and acceptance under load.

    The table goes to stderr, one line of JSON to stdout.
    """
    from osd.text.prompt_file import read_prompts
    from serving.bench.load import Load
    from serving.bench.questions import QUESTIONS
    from serving.bench.report import figures, print_table

    if queries < 1 or max_tokens < 1:
        raise OsdError("--queries and --max-tokens must be at least 1")
    closed, opened, extra = _numbers("--clients", clients, int), _numbers("--rates", rates, float), _fields(body)
    asked = [[{"role": "user", "content": question}] for question in QUESTIONS]
    if prompts is not None:
        asked = read_prompts(prompts)
    server = Load(
        base_url,
        asked,
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        api_key=api_key,
        extra_body=extra,
    )

    async def measure() -> tuple[str, list[LoadResult]]:
        async with server as load:
            return await load.model(), await load.in_turn(closed, opened, queries)

    name, results = _run(measure(), base_url)
    if server.failure and not any(result.answers for result in results):
        raise OsdError(f"every query failed: {server.failure}")
    console = Console(stderr=True)
    print_table(console, {name: results})
    if server.failure:
        console.print(f"some queries failed, the last one with: {server.failure}", markup=False, soft_wrap=True)
    loads = {result.label: figures(result) for result in results}
    report = {"benchmark": "serve", "server": base_url, "model": name, "max_tokens": max_tokens, "loads": loads}
    typer.echo(json.dumps(report))


@app.command("conversation")
def conversation(
    base_url: _BaseUrl = "http://127.0.0.1:8000",
    model: _Model = None,
    turns: Annotated[int, typer.Option(help="Questions of a conversation.")] = 8,
    conversations: Annotated[int, typer.Option(help="Conversations of each load.")] = 4,
    clients: Annotated[str, typer.Option(help="Conversations at a time, with commas.")] = "1,4",
    max_tokens: _MaxTokens = 64,
    api_key: _ApiKey = "none",
) -> None:
    """Time to first token by turn, which shows how much of the earlier turns a server reads again.

    The table goes to stderr, one line of JSON to stdout.
    """
    from serving.bench.conversation import Figures, converse, print_turns, turn_figures
    from serving.bench.load import Load, clients_label
    from serving.bench.questions import QUESTIONS

    most, loads = len(QUESTIONS), _numbers("--clients", clients, int)
    if max_tokens < 1 or not 1 <= turns <= most:
        raise OsdError(f"--max-tokens must be at least 1, and --turns between 1 and {most}")
    if not loads or not 1 <= conversations <= most // len(loads):
        raise OsdError(f"--clients times --conversations must be between 1 and {most}: none is held twice")
    # Each begins with a question of its own; otherwise a server could have read it before.
    rotated = [(QUESTIONS[first:] + QUESTIONS[:first])[:turns] for first in range(most)]

    async def measure() -> tuple[str, dict[str, list[Figures]]]:
        async with Load(base_url, [], model=model, max_tokens=max_tokens, api_key=api_key) as load:
            name, found = await load.model(), {}
            await load.ask([{"role": "user", "content": "Hello!"}])  # warms up
            for number, at_once in enumerate(loads):
                own = rotated[number * conversations :][:conversations]
                answers = await converse(load, own, at_once)
                found[clients_label(at_once)] = [turn_figures(turn) for turn in answers]
            return name, found

    name, found = _run(measure(), base_url)
    print_turns(Console(stderr=True), f"conversations of {max_tokens} tokens an answer", {name: found})
    report = {"benchmark": "conversation", "server": base_url, "model": name, "max_tokens": max_tokens, "loads": found}
    typer.echo(json.dumps(report))


def _run(measuring: Coroutine[Any, Any, _T], base_url: str) -> _T:
    """What is measured.

    Raises:
        OsdError: there is no server, or it does not say which models it has.
    """
    try:
        return asyncio.run(measuring)
    except (openai.APIConnectionError, httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise OsdError(f"no server answers at {base_url}; give another --base-url") from None
    except openai.APIStatusError as error:
        raise OsdError(f"the server does not list its models ({error.message}); give --model") from None


def _numbers(flag: str, text: str, kind: type[Any]) -> list[Any]:
    """Numbers above 0, with commas between them."""
    try:
        numbers = [kind(number) for number in text.split(",") if number.strip()]
    except ValueError:
        numbers = [0]
    if not all(0 < number < 1e6 for number in numbers):
        raise OsdError(f"{flag} takes numbers above 0 with commas between them, such as 1,4,16")
    return numbers


def _fields(body: str) -> dict[str, object]:
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise OsdError("--body takes a JSON object, such as '{\"ignore_eos\": true}'")
    return fields
