"""Holds conversations with a server: by turn, how long the first token takes and how much of the prompt it had read."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from rich.console import Console
from rich.table import Table

from osd.records.errors import OsdError
from osd.text.prompt_file import Messages
from serving.bench.load import Answer, Load

Figures = dict[str, float | int | None]


async def converse(load: Load, conversations: Sequence[Sequence[str]], clients: int) -> list[list[Answer]]:
    """Hold conversations, as many at a time as there are clients; returns each turn's answers.

    Args:
        load: the server.
        conversations: each one's questions, equally many.
        clients: conversations at a time.

    Raises:
        OsdError: a turn was not answered.
    """
    turns: list[list[Answer]] = [[] for _ in conversations[0]]
    left = iter(conversations)

    async def client(left: Iterator[Sequence[str]] = left) -> None:
        for questions in left:
            await _hold(load, questions, turns)

    await asyncio.gather(*(client() for _ in range(clients)))
    return turns


async def _hold(load: Load, questions: Sequence[str], turns: list[list[Answer]]) -> None:
    """One conversation, which contains the server's own answers."""
    messages: Messages = []
    for number, (question, answers) in enumerate(zip(questions, turns, strict=True), start=1):
        messages = [*messages, {"role": "user", "content": question}]
        answer = await load.ask(messages)
        if answer is None:
            raise OsdError(f"turn {number} was not answered ({load.failure}); try fewer --turns")
        answers.append(answer)
        messages = [*messages, {"role": "assistant", "content": answer.text}]


def turn_figures(answers: Sequence[Answer]) -> Figures:
    """One turn's figures for JSON; null for what the server does not report."""
    cached = [answer.cached_tokens for answer in answers if answer.cached_tokens is not None]
    tpot_ms = median(answer.tpot_s for answer in answers) * 1e3
    return {
        "prompt_tokens": round(median(answer.prompt_tokens for answer in answers)) or None,
        "cached_tokens": round(median(cached)) if cached else None,
        "ttft_p50_ms": round(median(answer.ttft_s for answer in answers) * 1e3, 1),
        "ttft_max_ms": round(max(answer.ttft_s for answer in answers) * 1e3, 1),
        "tpot_p50_ms": None if math.isnan(tpot_ms) else round(tpot_ms, 2),
    }


def print_turns(console: Console, title: str, servers: Mapping[str, Mapping[str, Sequence[Figures]]]) -> None:
    """A row a turn, by server and load; `-` for what the server does not report."""
    table = Table(title=title)
    for column in ("server", "load", "turn", "prompt tokens", "of them read before", "TTFT p50 ms", "TTFT max ms"):
        table.add_column(column, justify="right")
    table.add_column("per token p50 ms", justify="right")
    for server, loads in servers.items():
        for load, turns in loads.items():
            for number, turn in enumerate(turns, start=1):
                told = ["-" if figure is None else f"{figure:g}" for figure in turn.values()]
                table.add_row(server, load, str(number), *told)
    console.print(table)
