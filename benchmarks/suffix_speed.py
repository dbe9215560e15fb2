"""What the suffix lookup gains in service: two servers, with and without it, are asked the same queries in turn.

    python -m benchmarks.suffix_speed STREAM [--queries 100] [--max-tokens 96]

One client, greedy answers, the shipped drafter, no training. STREAM is one of `benchmarks.adaptation`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.adaptation.streams import read_stream
from benchmarks.machine import describe_machine
from benchmarks.server import osd_server
from osd.config.paths import models_dir
from osd.config.settings import default_state_dir
from osd.text.prompt_file import Messages

_ARMS = {"frozen": ["--no-drafter.suffix"], "frozen+suffix": []}
_TIMEOUT_S = 600.0


class _Answer(NamedTuple):
    output_tokens: int
    rounds: int
    committed: int
    took_s: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = _arguments(arguments)
    prompts = [prompt.messages for prompt in read_stream(args.stream, args.queries)]
    answers: dict[str, list[_Answer]] = {arm: [] for arm in _ARMS}
    folder = Path(mkdtemp(prefix="osd-suffix-"))
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(timeout=_TIMEOUT_S))
        urls = {}
        for arm, flags in _ARMS.items():
            state_dir = folder / arm
            models_dir(state_dir).parent.mkdir(parents=True)
            models_dir(state_dir).symlink_to(models_dir(default_state_dir()))  # the target is converted once
            urls[arm] = stack.enter_context(osd_server(state_dir, folder / f"{arm}.log", ["--no-train", *flags]))
        for number, messages in enumerate(prompts):
            for arm in sorted(_ARMS, reverse=bool(number % 2)):
                answers[arm].append(_ask(client, urls[arm], messages, args.max_tokens))
    found = {arm: _figures(own, args.window) for arm, own in answers.items()}
    _show(found, args.window)
    frozen, suffix = (found[arm]["all"] for arm in _ARMS)
    ratios = {name: round(suffix[name] / frozen[name], 3) for name in ("length", "tokens_per_s")}
    report = {"stream": args.stream, "queries": len(prompts), "max_tokens": args.max_tokens, "arms": found}
    print(
        json.dumps({"benchmark": "suffix_speed", "machine": describe_machine(), **report, "suffix_vs_frozen": ratios})
    )


def _ask(client: httpx.Client, url: str, messages: Messages, max_tokens: int) -> _Answer:
    started_s = time.perf_counter()
    body = {"model": "smollm2", "messages": messages, "max_tokens": max_tokens, "temperature": 0}
    answer = client.post(f"{url}/v1/chat/completions", json=body).raise_for_status().json()
    took_s = time.perf_counter() - started_s
    return _Answer(answer["usage"]["completion_tokens"], answer["osd"]["rounds"], answer["osd"]["committed"], took_s)


def _figures(answers: Sequence[_Answer], window: int) -> dict[str, Any]:
    """Acceptance length and tokens per second, over all queries and by windows of them."""

    def of(some: Sequence[_Answer]) -> dict[str, float]:
        length = sum(one.committed for one in some) / max(sum(one.rounds for one in some), 1)
        tokens_per_s = sum(one.output_tokens for one in some) / sum(one.took_s for one in some)
        return {"length": round(length, 3), "tokens_per_s": round(tokens_per_s, 1)}

    windows = [of(answers[first : first + window]) for first in range(0, len(answers), window)]
    return {"all": of(answers), "windows": windows}


def _show(found: dict[str, dict[str, Any]], window: int) -> None:
    table = Table(title="one client, acceptance length and tokens/s")
    table.add_column("queries")
    for arm in found:
        table.add_column(arm, justify="right")
    spans = [f"{number * window + 1} to {(number + 1) * window}" for number in range(len(found["frozen"]["windows"]))]
    for number, span in enumerate(spans):
        table.add_row(span, *(_cell(own["windows"][number]) for own in found.values()))
    table.add_row("all", *(_cell(own["all"]) for own in found.values()))
    Console(stderr=True).print(table)


def _cell(figures: dict[str, float]) -> str:
    return f"{figures['length']:.2f}  {figures['tokens_per_s']:.1f}"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("stream")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--window", type=int, default=25, help="queries of a row of the table")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
