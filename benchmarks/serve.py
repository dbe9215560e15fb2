"""Serving under load: time to first token, time per output token, throughput; of osd in four modes, or any server.

python -m benchmarks.serve [--clients 1,4,16,64] [--rates 0.5] [--json]
python -m benchmarks.serve --url http://127.0.0.1:8080      # vLLM, SGLang, llama.cpp's server, …
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.machine import describe_machine
from benchmarks.prompts import code_prompts, small_talk_prompts, tool_call_prompts
from benchmarks.server import osd_server
from osd.config.settings import default_state_dir
from osd.text.prompt_file import Messages, read_prompts
from serving.bench.load import Load, LoadResult
from serving.bench.report import figures, print_table

_MODES = {
    "plain": ["--no-train", "--no-speculate"],
    "speculative": ["--no-train"],
    "plain, training": ["--no-speculate"],
    "speculative, training": [],
}


def main() -> None:
    """Run the load on each server in turn."""
    args = _arguments()
    console = Console(stderr=args.json)
    prompts = _prompts(args)
    results: dict[str, list[LoadResult]] = {}
    if args.url:
        results[args.url] = asyncio.run(_load(args, args.url, prompts))
    else:
        out = Path(args.out)
        out.mkdir(parents=True, exist_ok=True)
        for number, mode in enumerate(args.modes):
            console.print(f"osd, {mode}")
            flags = [*_MODES[mode], *args.serve_flag]
            state_dir = Path(args.state_dir) if args.state_dir else default_state_dir()
            with osd_server(state_dir, out / f"serve-{number}.log", flags) as url:
                results[f"osd {mode}"] = asyncio.run(_load(args, url, prompts))
    print_table(console, results)
    if args.json:
        print(json.dumps(_report(args, results)))


async def _load(args: argparse.Namespace, url: str, prompts: list[Messages]) -> list[LoadResult]:
    async with Load(url, prompts, model=args.model, max_tokens=args.max_tokens) as load:
        return await load.in_turn(args.clients, args.rates, args.queries)


def _report(args: argparse.Namespace, results: dict[str, list[LoadResult]]) -> dict[str, Any]:
    servers = {server: {load.label: figures(load) for load in loads} for server, loads in results.items()}
    report = {"benchmark": "serve", "machine": describe_machine(), "max_tokens": args.max_tokens, "servers": servers}
    for name, pair in {
        "speculative_vs_plain": ("osd speculative", "osd plain"),
        "training_vs_not": ("osd speculative, training", "osd speculative"),
    }.items():
        if pair[0] in servers and pair[1] in servers:
            report[name] = {
                load.label: round(load.tokens_per_s / beside.tokens_per_s, 3)
                for load, beside in zip(results[pair[0]], results[pair[1]], strict=True)
                if beside.tokens_per_s
            }
    return report


def _prompts(args: argparse.Namespace) -> list[Messages]:
    if args.prompts:
        return read_prompts(Path(args.prompts))
    sources = (code_prompts(), tool_call_prompts(), small_talk_prompts())
    return [messages for trio in zip(*sources, strict=False) for messages in trio]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url", default="", help="a running server, without /v1; default: osd, started in each mode")
    parser.add_argument("--model", default=None, help="model to ask for (default: the first that the server names)")
    parser.add_argument("--modes", default="; ".join(_MODES), help="osd's modes, with semicolons")
    parser.add_argument("--clients", default="1,4,16,64", help="closed loops, with commas")
    parser.add_argument("--rates", default="0.5", help="open loops: queries a second, with commas; empty for none")
    parser.add_argument("--queries", type=int, default=32, help="queries of each load, at least")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--prompts", default="", help='JSONL of {"prompt": …} instead')
    parser.add_argument("--state-dir", default="", help="osd's state folder (default: the user's)")
    parser.add_argument("--serve-flag", action="append", default=[], help="a further flag for osd serve; repeatable")
    parser.add_argument("--out", default="demo-out", help="folder for the servers' logs")
    parser.add_argument("--json", action="store_true", help="end with one JSON line on stdout; the rest goes to stderr")
    args = parser.parse_args()
    args.clients = [int(number) for number in args.clients.split(",") if number]
    args.rates = [float(number) for number in args.rates.split(",") if number]
    args.modes = [mode.strip() for mode in args.modes.split(";")]
    if unknown := set(args.modes) - _MODES.keys():
        parser.error(f"unknown mode {sorted(unknown)[0]!r}; there are: {'; '.join(_MODES)}")
    return args


if __name__ == "__main__":
    main()
