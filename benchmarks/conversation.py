"""Time to first token by turn of a conversation, which shows how much of the earlier turns a server prefills again.

python -m benchmarks.conversation [--turns 8] [--clients 1,4] [--json]
python -m benchmarks.conversation --url vLLM=http://127.0.0.1:8080     # compares with SGLang, llama.cpp's server, …
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.machine import describe_machine
from benchmarks.prompts import code_prompts, small_talk_prompts
from benchmarks.server import osd_server
from osd.config.settings import default_state_dir
from osd.records.errors import OsdError
from serving.bench.conversation import converse, print_turns, turn_figures
from serving.bench.load import Answer, Load, clients_label

_OSD = {"osd": [], "osd, reading all": ["--no-prefix-caching"]}
"""Names of osd's servers, each with its flags."""


def main() -> None:
    """Hold the same conversations with each server in turn."""
    args = _arguments()
    console = Console(stderr=args.json)
    by_server: dict[str, dict[str, list[list[Answer]]]] = {}
    for name in [*_OSD, *args.peers]:
        console.print(name)
        with _server(name, args) as url:
            try:
                by_server[name] = asyncio.run(_converse(args, url))
            except OsdError as error:
                raise SystemExit(str(error)) from None
    report = {
        "benchmark": "conversation",
        "machine": describe_machine(),
        "max_tokens": args.max_tokens,
        "conversations": args.conversations,
        "servers": {
            server: {load: [turn_figures(turn) for turn in turns] for load, turns in loads.items()}
            for server, loads in by_server.items()
        },
    }
    report["ttft_of_last_turn_vs_osd"] = _ratios(report["servers"])
    print_turns(console, f"conversations of {args.max_tokens} tokens an answer", report["servers"])
    if args.json:
        print(json.dumps(report))


@contextmanager
def _server(name: str, args: argparse.Namespace) -> Iterator[str]:
    """A server's URL; osd's servers are started here."""
    if name not in _OSD:
        yield args.peers[name]
        return
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    state_dir = Path(args.state_dir) if args.state_dir else default_state_dir()
    flags = ["--no-train", *_OSD[name], *args.serve_flag]
    with osd_server(state_dir, out / f"conversation-{list(_OSD).index(name)}.log", flags) as url:
        yield url


async def _converse(args: argparse.Namespace, url: str) -> dict[str, list[list[Answer]]]:
    """By number of clients: each turn's answers."""
    found = {}
    async with Load(url, [], model=args.model, max_tokens=args.max_tokens) as load:
        await load.ask([{"role": "user", "content": "Hello!"}])  # warms up
        for number, clients in enumerate(args.clients):
            own = _questions(args.turns)[number * args.conversations :][: args.conversations]
            found[clients_label(clients)] = await converse(load, own, clients)
    return found


def _questions(turns: int) -> list[list[str]]:
    """The questions of each conversation: code to complete and small talk alternate; none is asked twice."""
    pairs = zip(code_prompts(), small_talk_prompts(), strict=False)
    contents = [messages[-1]["content"] for pair in pairs for messages in pair]
    return [contents[start : start + turns] for start in range(0, len(contents) - turns + 1, turns)]


def _ratios(servers: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, dict[str, float]]:
    """The others' time to first token in the last turn, as a multiple of osd's."""
    own = servers["osd"]
    return {
        server: {load: round(turns[-1]["ttft_p50_ms"] / own[load][-1]["ttft_p50_ms"], 2) for load, turns in of.items()}
        for server, of in servers.items()
        if server != "osd"
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url", action="append", default=[], help="NAME=URL of a peer, without /v1; repeatable")
    parser.add_argument("--model", default=None, help="model to ask for (default: the first that a server names)")
    parser.add_argument("--turns", type=int, default=8, help="questions of a conversation")
    parser.add_argument("--conversations", type=int, default=8, help="of each load")
    parser.add_argument("--clients", default="1,4", help="conversations at a time, with commas")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--state-dir", default="", help="osd's state folder (default: the user's)")
    parser.add_argument("--serve-flag", action="append", default=[], help="a further flag for osd serve; repeatable")
    parser.add_argument("--out", default="demo-out", help="folder for the servers' logs")
    parser.add_argument("--json", action="store_true", help="end with one JSON line on stdout; the rest goes to stderr")
    args = parser.parse_args()
    args.peers = {name or url: url for name, _, url in (one.rpartition("=") for one in args.url)}
    args.clients = [int(number) for number in args.clients.split(",") if number]
    if args.turns < 1 or not args.clients:
        parser.error("--turns must be at least 1, and --clients name a load")
    if not 0 < args.conversations <= (most := len(_questions(args.turns)) // len(args.clients)):
        parser.error(f"--conversations must be between 1 and {most} for so many turns and loads: none is held twice")
    return args


if __name__ == "__main__":
    main()
