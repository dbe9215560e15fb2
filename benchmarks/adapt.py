"""The demo: stream real tool-call prompts, then functions to complete, to a server with an untrained drafter.

It learns the first kind, and then the second, which comes all at once. Prints a table by window of queries: acceptance,
speed, drafter version, and plain decoding's speed measured in the same window under the same training load. Then plain
decoding on the last tool calls, the same on a server that does not train and has all cores (the cost of training), a
PNG plot, and one line of JSON.

    python -m benchmarks.adapt [--quick] [--queries N]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
from openai import OpenAI
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.adaptation.streams import Prompt
from benchmarks.machine import describe_machine
from benchmarks.plots import plot_adaptation
from benchmarks.prompts import code_prompts, tool_call_prompts
from benchmarks.server import osd_server

_TRAINER = """
[trainer]
learning_rate = 1e-3
"""
"""An untrained drafter learns faster by larger steps than the default's."""
_QUICK_TRAINER = "gate_every_steps = 8\n"
"""With about twenty queries, the first version must be published early to have an effect."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One query as measured by its client."""

    output_tokens: int
    decode_s: float
    """From the first to the last piece of text, so without prefill."""
    rounds: int
    proposed: int
    accepted: int
    committed: int
    drafter_version: int


@dataclass(frozen=True, slots=True)
class Window:
    """Sums over several queries; ratios are ratios of sums."""

    answers: list[Answer]

    @property
    def acceptance_rate(self) -> float:
        """Accepted / proposed."""
        return _ratio(sum(a.accepted for a in self.answers), sum(a.proposed for a in self.answers))

    @property
    def acceptance_length(self) -> float:
        """Committed / rounds; 1 for plain decoding."""
        return _ratio(sum(a.committed for a in self.answers), sum(a.rounds for a in self.answers))

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed as measured by the client."""
        return _ratio(sum(a.committed for a in self.answers), sum(a.decode_s for a in self.answers))

    @property
    def drafter_version(self) -> int:
        """The newest version that proposed."""
        return max((a.drafter_version for a in self.answers), default=0)


class _Row(NamedTuple):
    """A window of queries of one domain."""

    start: int
    domain: str
    window: Window
    twin: Window
    """Those of its queries that were also decoded plainly."""
    plain: Window
    """The same, decoded plainly."""


class Asker:
    """Sends prompts one after another through the official OpenAI client.

    Args:
        url: the server.
        max_tokens: longest answer.
    """

    def __init__(self, url: str, max_tokens: int) -> None:
        self._client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)
        self._model = self._client.models.list().data[0].id
        self._max_tokens = max_tokens

    def ask(self, prompt: Prompt, *, plain: bool = False, store: bool = True) -> Answer:
        """One greedy answer, streamed. `plain` disables speculation; `store` lets the drafter learn from the answer."""
        extra: dict[str, Any] = {"domain": prompt.domain}
        if plain:
            extra["speculation_length"] = 0
        stream = self._client.chat.completions.create(  # type: ignore[call-overload]  # messages are plain dictionaries here
            model=self._model,
            messages=prompt.messages,
            temperature=0,
            max_tokens=self._max_tokens,
            stream=True,
            store=store,
            stream_options={"include_usage": True},
            extra_body={"osd": extra},
        )
        first_s = last_s = 0.0
        figures: dict[str, Any] = {}
        output_tokens = 0
        for chunk in stream:
            if chunk.choices:
                last_s = time.perf_counter()
                first_s = first_s or last_s
            if found := (chunk.model_extra or {}).get("osd"):
                figures = found
            if chunk.usage:
                output_tokens = chunk.usage.completion_tokens
        return Answer(
            output_tokens=output_tokens,
            decode_s=last_s - first_s,
            rounds=figures["rounds"],
            proposed=figures["proposed"],
            accepted=figures["accepted"],
            committed=figures["committed"],
            drafter_version=figures["drafter_version"],
        )


def main() -> None:
    """Run the demo."""
    args = _arguments()
    console = Console()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    token = secrets.token_urlsafe(16)
    prompts = [Prompt("tools", messages) for messages in tool_call_prompts(seed=args.seed)[: args.queries]]
    prompts += [Prompt("code", messages) for messages in code_prompts()[: args.shifted]]
    again = prompts[: args.queries][-args.window :]
    console.print(
        f"{args.queries} tool calls, then {args.shifted} functions to complete, {args.max_tokens} tokens at most, "
        "greedy, one at a time"
    )
    with tempfile.TemporaryDirectory(prefix="osd-demo-") as scratch:
        state_dir = Path(args.state_dir) if args.state_dir else Path(scratch)
        _share_converted_models(state_dir)
        config = out / "demo.toml"
        config.write_text(_settings(token, args.quick, args.pretrained))
        common = ["--config", str(config), *args.serve_flag]
        with osd_server(state_dir, out / "server.log", [*common, "--max-utilisation", "1.0"]) as url:
            admin = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60)
            asker = Asker(url, args.max_tokens)
            answers, controls = _stream(console, asker, prompts, args)
            closing = {"on": _closing(asker, again)}
            versions = admin.get("/admin/api/versions").json()
            status = admin.get("/admin/api/status").json()
        console.print("the last tool calls again, from a server that does not train and has all cores")
        with osd_server(state_dir, out / "server-frozen.log", [*common, "--no-train", "--threads", "0"]) as url:
            asker = Asker(url, args.max_tokens)
            asker.ask(prompts[0], store=False)
            closing["off"] = _closing(asker, again)
    windows = _windows(prompts, answers, controls, args.window)
    _print_windows(console, windows)
    _print_closing(console, closing)
    plot = out / "adaptation.png"
    plot_adaptation(plot, [(a.drafter_version, a.committed, a.rounds) for a in answers], args.window)
    console.print(f"plot: {plot}")
    print(json.dumps(_report(args, windows, closing, versions, status)))  # JSON on the last line, for scripts


def _settings(token: str, quick: bool, pretrained: bool) -> str:
    """The server's configuration: training never yields, and has a core of its own.

    Cores are split rather than shared, since the engine's threads synchronise several times in every layer.
    """
    threads = max((psutil.cpu_count(logical=False) or 1) - 1, 1)
    hashed = hashlib.sha256(token.encode()).hexdigest()
    settings = f'[server]\nadmin_token_sha256 = "{hashed}"\n\n[target]\nthreads = {threads}\n'
    settings += f"\n[drafter]\npretrained = {str(pretrained).lower()}\n"
    return settings + _TRAINER + (_QUICK_TRAINER if quick else "")


def _stream(
    console: Console, asker: Asker, prompts: list[Prompt], args: argparse.Namespace
) -> tuple[list[Answer], dict[int, tuple[Answer, Answer]]]:
    """Ask every prompt; some of them also without speculation, to compare speeds under the same training load."""
    answers: list[Answer] = []
    controls: dict[int, tuple[Answer, Answer]] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("acceptance length -", total=len(prompts))
        for number, prompt in enumerate(prompts):
            if number and prompt.domain != prompts[number - 1].domain:
                console.print(f"the topic changes from {prompts[number - 1].domain} to {prompt.domain}")
            answer = asker.ask(prompt)
            answers.append(answer)
            if number % args.control_every == args.control_every - 1:
                controls[number] = (answer, asker.ask(prompt, plain=True, store=False))
            recent = Window(answers[-20:])
            label = f"acceptance length {recent.acceptance_length:.2f}, drafter v{recent.drafter_version}"
            progress.update(task, advance=1, description=label)
            if number % args.window == args.window - 1:
                length = Window(answers[-args.window :]).acceptance_length
                console.print(f"after {number + 1} queries: acceptance length {length:.2f}, v{answer.drafter_version}")
    return answers, controls


def _closing(asker: Asker, prompts: list[Prompt]) -> dict[str, Window]:
    """Ask earlier prompts again, alternating between speculative and plain decoding."""
    speculative, plain = [], []
    for prompt in prompts:
        speculative.append(asker.ask(prompt, store=False))
        plain.append(asker.ask(prompt, plain=True, store=False))
    return {"speculative": Window(speculative), "plain": Window(plain)}


def _windows(
    prompts: list[Prompt], answers: list[Answer], controls: dict[int, tuple[Answer, Answer]], size: int
) -> list[_Row]:
    """The rows of the table; none has queries of two domains."""
    rows = []
    for domain in dict.fromkeys(prompt.domain for prompt in prompts):
        numbers = [number for number, prompt in enumerate(prompts) if prompt.domain == domain]
        for start in range(0, len(numbers), size):
            own = numbers[start : start + size]
            pairs = [controls[number] for number in own if number in controls]
            twins = Window([pair[0] for pair in pairs]), Window([pair[1] for pair in pairs])
            rows.append(_Row(own[0], domain, Window([answers[number] for number in own]), *twins))
    return rows


def _print_windows(console: Console, rows: list[_Row]) -> None:
    table = Table(title="by window of queries (training on)")
    for column in ("queries", "of", "acceptance rate", "acceptance length", "tokens/s", "plain", "ratio", "drafter"):
        table.add_column(column, justify="right")
    for row in rows:
        window = row.window
        table.add_row(
            f"{row.start + 1}-{row.start + len(window.answers)}",
            row.domain,
            f"{window.acceptance_rate:.3f}",
            f"{window.acceptance_length:.2f}",
            f"{window.tokens_per_s:.1f}",
            f"{row.plain.tokens_per_s:.1f}",
            f"{_ratio(row.twin.tokens_per_s, row.plain.tokens_per_s):.2f}",
            f"v{window.drafter_version}",
        )
    console.print(table)
    console.print("ratio: the prompts that were also decoded plainly, speculative over plain, in the same window")


def _print_closing(console: Console, closing: dict[str, dict[str, Window]]) -> None:
    table = Table(title="the last tool calls again")
    for column in ("training", "speculative tokens/s", "plain tokens/s", "ratio", "acceptance length"):
        table.add_column(column, justify="right")
    for training, runs in closing.items():
        fast, plain = runs["speculative"], runs["plain"]
        table.add_row(
            training,
            f"{fast.tokens_per_s:.1f}",
            f"{plain.tokens_per_s:.1f}",
            f"{_ratio(fast.tokens_per_s, plain.tokens_per_s):.2f}",
            f"{fast.acceptance_length:.2f}",
        )
    console.print(table)
    cost = 1 - _ratio(closing["on"]["plain"].tokens_per_s, closing["off"]["plain"].tokens_per_s)
    console.print(f"training, and the core it has, cost plain decoding {cost:.1%} of its speed here")


def _report(
    args: argparse.Namespace,
    windows: list[_Row],
    closing: dict[str, dict[str, Window]],
    versions: list[dict[str, Any]],
    status: dict[str, Any],
) -> dict[str, Any]:
    return {
        "benchmark": "adapt",
        "pretrained": args.pretrained,
        "machine": describe_machine(),
        "queries": args.queries,
        "shifted": args.shifted,
        "window": args.window,
        "max_tokens": args.max_tokens,
        "windows": [
            {
                "first_query": row.start + 1,
                "domain": row.domain,
                "acceptance_rate": round(row.window.acceptance_rate, 4),
                "acceptance_length": round(row.window.acceptance_length, 4),
                "tokens_per_s": round(row.window.tokens_per_s, 2),
                "speculative_vs_plain": round(_ratio(row.twin.tokens_per_s, row.plain.tokens_per_s), 4),
                "drafter_version": row.window.drafter_version,
            }
            for row in windows
        ],
        "closing": {
            training: {
                "speculative_tokens_per_s": round(runs["speculative"].tokens_per_s, 2),
                "plain_tokens_per_s": round(runs["plain"].tokens_per_s, 2),
                "speculative_vs_plain": round(_ratio(runs["speculative"].tokens_per_s, runs["plain"].tokens_per_s), 4),
            }
            for training, runs in closing.items()
        },
        "versions_published": len(versions),
        "trained_tokens": (status["trainer"] or {}).get("trained_tokens"),
        "resident_bytes": status["processes"],
    }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def _share_converted_models(state_dir: Path) -> None:
    """Share the converted target, which is not learnt, with a new state folder; the drafter starts untrained."""
    from osd.config.paths import models_dir
    from osd.config.settings import default_state_dir
    from osd.loading.resolve import resolve_target

    shared = default_state_dir()
    resolve_target("smollm2", shared)
    state_dir.mkdir(parents=True, exist_ok=True)
    if not models_dir(state_dir).exists():
        models_dir(state_dir).symlink_to(models_dir(shared))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pretrained", action="store_true", help="start from the drafter shipped with osd, not cold")
    parser.add_argument("--quick", action="store_true", help="few, short queries")
    parser.add_argument("--queries", type=int, default=300, help="tool calls to stream")
    parser.add_argument("--shifted", type=int, default=60, help="functions to complete, which come after them")
    parser.add_argument("--window", type=int, default=30, help="queries a row of the table")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--control-every", type=int, default=5, help="every so many prompts is decoded plainly too")
    parser.add_argument("--seed", type=int, default=0, help="order of the prompts")
    parser.add_argument("--state-dir", default="", help="keep the server's state here (default: a fresh folder)")
    parser.add_argument("--out", default="demo-out", help="folder for the plot and the server's log")
    parser.add_argument("--serve-flag", action="append", default=[], help="a further flag for osd serve; repeatable")
    args = parser.parse_args()
    if args.quick:
        args.queries, args.shifted, args.window, args.max_tokens, args.control_every = 24, 12, 6, 32, 6
    return args


if __name__ == "__main__":
    main()
