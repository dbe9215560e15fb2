"""`osd chat`."""

from __future__ import annotations

from typing import Annotated, Any, cast

import httpx
import openai
import typer
from openai import OpenAI
from rich.console import Console

from osd.records.errors import OsdError


def chat(
    url: Annotated[str, typer.Option(help="Where osd serves.")] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str, typer.Option(help="API key, if the server asks for one.", envvar="OPENAI_API_KEY")
    ] = "none",
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    system: Annotated[str, typer.Option(help="System message.")] = "",
    prompt: Annotated[str, typer.Argument(help="Ask this and leave; without it, chat until /quit.")] = "",
) -> None:
    """Chat with a running server in the terminal, and see the acceptance of each answer."""
    console = Console()
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    try:
        with OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=api_key, max_retries=0) as client:
            model = client.models.list().data[0].id
            while True:
                text = prompt or console.input("[bold]you>[/] ")
                if text.strip() in {"/quit", "/exit"}:
                    return
                if not text.strip():
                    continue
                messages.append({"role": "user", "content": text})
                answer = _answer(console, client, model, messages, temperature, max_tokens)
                messages.append({"role": "assistant", "content": answer})
                if prompt:
                    return
    except (EOFError, KeyboardInterrupt):
        console.print()
    except (openai.APIConnectionError, httpx.InvalidURL):
        raise OsdError(f"no server answers at {url}; start one with `osd serve`, or give --url") from None
    except openai.APIStatusError as error:
        raise OsdError(f"the server refused: {error.message}") from None
    except openai.APIError as error:
        raise OsdError(f"the server broke off its answer: {error.message}; ask again") from None


def _answer(
    console: Console, client: OpenAI, model: str, messages: list[dict[str, str]], temperature: float, max_tokens: int
) -> str:
    stream: Any = client.chat.completions.create(
        model=model, messages=cast(Any, messages), temperature=temperature, max_tokens=max_tokens, stream=True
    )
    pieces: list[str] = []
    figures: dict[str, Any] = {}
    for chunk in stream:
        figures = (chunk.model_extra or {}).get("osd") or figures
        if chunk.choices and chunk.choices[0].delta.content:
            pieces.append(chunk.choices[0].delta.content)
            console.print(pieces[-1], end="", markup=False, highlight=False)
    console.print()
    if figures:
        console.print(f"[dim]{_in_words(figures)}[/]")
    return "".join(pieces)


def _in_words(figures: dict[str, Any]) -> str:
    """An answer's `osd` field in words."""
    rounds = f"{figures['rounds']} round{'' if figures['rounds'] == 1 else 's'}"
    if not figures["proposed"]:
        return f"decoded plainly: nothing proposed in {rounds}"
    return (
        f"accepted {figures['accepted']} of {figures['proposed']} proposed in {rounds}, "
        f"acceptance length {figures['acceptance_length']:.2f}, drafter v{figures['drafter_version']}"
    )
