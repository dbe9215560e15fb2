"""What Ray Serve's path costs, and what more engines bring.

python -m benchmarks.engines [--engines 1,2,3] [--clients 1,8] [--threads 1] [--target smollm2] [--json]

`direct` is `osd serve` on this machine; the others are the Ray Serve application on one node with so many engines. The
first token and the time per token are medians over queries. Give every engine a core of its own (`--threads`), or the
engines only take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.fleet.cluster import ServeCluster
from benchmarks.machine import describe_machine
from benchmarks.prompts import small_talk_prompts
from benchmarks.server import free_port, osd_server
from osd.config.settings import default_state_dir
from serving.bench.load import Load, LoadResult

_DIRECT = "direct"


def main() -> None:
    """Measure each server in turn."""
    args = _arguments()
    console = Console(stderr=args.json)
    servers: dict[str, Any] = {}
    for name in [_DIRECT, *(f"{num} engine{'s' if num > 1 else ''}" for num in args.engines)]:
        console.print(name)
        with tempfile.TemporaryDirectory(prefix="osd-engines-") as folder, _server(name, args, Path(folder)) as url:
            servers[name] = asyncio.run(_measure(args, url))
    report = {
        "benchmark": "engines",
        "machine": describe_machine(),
        "target": args.target,
        "threads": args.threads,
        "max_tokens": args.max_tokens,
        "servers": servers,
    }
    _print(console, report)
    if args.json:
        print(json.dumps(report))


@contextmanager
def _server(name: str, args: argparse.Namespace, folder: Path) -> Iterator[str]:
    if name == _DIRECT:
        flags = ["--target", args.target, "--threads", str(args.threads), "--no-train", "--no-outcomes.enabled"]
        with osd_server(args.state_dir, folder / "osd.log", flags) as url:
            yield url
        return
    num = int(name.split()[0])
    settings = {
        "state_dir": str(args.state_dir),
        "target": {"model": args.target, "threads": args.threads, "wait_for_kernels": True},
        "trainer": {"enabled": False},
        "outcomes": {"enabled": False},
        "cluster": {"min_engines": num, "max_engines": num, "engine_num_cpus": args.threads, "num_ingress": 1},
    }
    with ServeCluster(folder, free_port(), head={"num_cpus": num * args.threads}, nodes=[]) as cluster:
        cluster.do("deploy", args=settings)
        yield cluster.url


async def _measure(args: argparse.Namespace, url: str) -> dict[str, Any]:
    """Number of clients to figures."""
    async with Load(url, small_talk_prompts(), max_tokens=args.max_tokens) as load:
        await load.closed(max(args.clients), 2 * max(args.clients))  # warms up every engine
        return {str(num): _figures(await load.closed(num, max(args.queries, num))) for num in args.clients}


def _figures(result: LoadResult) -> dict[str, Any]:
    return {
        "tokens_per_s": result.tokens_per_s,
        "ttft_ms": result.percentile_ms("ttft_s", 50),
        "tpot_ms": result.percentile_ms("tpot_s", 50),
        "failed": result.failed,
    }


def _arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=numbers, default=[1, 2, 3])
    parser.add_argument("--clients", type=numbers, default=[1, 8])
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--queries", type=int, default=24, help="under each number of clients")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--state-dir", type=Path, default=default_state_dir())
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    return parser.parse_args()


def _print(console: Console, report: dict[str, Any]) -> None:
    table = Table("server", "clients", "tokens/s", "first token, ms", "time per token, ms", "failed")
    for server, by_clients in report["servers"].items():
        for clients, one in by_clients.items():
            figures = (f"{one['tokens_per_s']:.1f}", f"{one['ttft_ms']:.1f}", f"{one['tpot_ms']:.2f}")
            table.add_row(server, clients, *figures, str(one["failed"]))
    console.print(table)


if __name__ == "__main__":
    main()
