"""What a cluster's clients notice when a part of it dies: queries lost, the longest pause, the time until all is back.

python -m benchmarks.faults [--only "Redis,an engine"] [--target smollm2] [--clients 6] [--json]

Three Ray nodes on this machine, with two engines; clients stream greedy answers, of which none may differ from what the
same service answered before. Ray's GCS keeps its state in a Redis of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.fleet.cluster import ServeCluster
from benchmarks.fleet.faults import FAULTS, HEAD, NODES, PLACEMENT, survive
from benchmarks.fleet.load import StreamingLoad, stream, streaming_load
from benchmarks.fleet.redis_server import RedisServer
from benchmarks.machine import describe_machine
from benchmarks.server import free_port
from osd.config.settings import default_state_dir

_PROMPTS = [
    "The sea is",
    "List three fruits:",
    "def add(a, b):",
    "Once upon a time",
    "12 + 30 =",
    "Hello, who are you?",
]


def main() -> None:
    """Strike with each fault in turn."""
    args = _arguments()
    console = Console(stderr=args.json)
    with tempfile.TemporaryDirectory(prefix="osd-faults-") as folder:
        recoveries = _measure(args, Path(folder), console)
    report = {
        "benchmark": "faults",
        "machine": describe_machine(),
        "target": args.target,
        "clients": args.clients,
        "max_tokens": args.max_tokens,
        "faults": recoveries,
    }
    _print(console, report)
    if args.json:
        print(json.dumps(report))


def _measure(args: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    homes = [folder / name for name in ("gcs-redis", "redis", "home")]
    for home in homes:
        home.mkdir()
    with (
        RedisServer(homes[0], free_port()) as gcs_redis,
        RedisServer(homes[1], free_port()) as redis,
        ServeCluster(
            homes[2], free_port(), head=HEAD, nodes=NODES, environment={"RAY_REDIS_ADDRESS": gcs_redis.address}
        ) as cluster,
    ):
        cluster.do("deploy", args=_settings(args, redis.url))
        with httpx.Client(base_url=cluster.url, timeout=300) as client:
            (model,) = client.get("/v1/models").json()["data"]
            whole = [stream(client, prompt, args.max_tokens, model["id"], StreamingLoad(1)) for prompt in _PROMPTS]
        expected = {one.prompt: one.text for one in whole}
        recoveries = {}
        for name in args.only:
            console.print(name)
            fault = FAULTS[name]
            with streaming_load(
                cluster.url, model["id"], _PROMPTS, args.max_tokens, args.clients, retries=fault.retries
            ) as load:
                load.wait_until_all_stream()
                recovery = survive(fault, cluster, redis, load)
            recoveries[name] = {
                **asdict(recovery),
                "queries": len(load.answers),
                "lost": len(load.lost(expected)),
                "asked_again": sum(one.num_attempts - 1 for one in load.answers),
            }
    return recoveries


def _settings(args: argparse.Namespace, redis_url: str) -> dict[str, Any]:
    return {
        "state_dir": str(args.state_dir),
        "target": {"model": args.target, "threads": 1},
        "engine": {"max_slots": args.clients},
        "outcomes": {"redis_url": redis_url},
        "cluster": {**PLACEMENT, "min_engines": 2, "max_engines": 2, "health_interval_s": 1},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(FAULTS), help="faults, by comma")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--state-dir", type=Path, default=default_state_dir())
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    args = parser.parse_args()
    if unknown := [name for name in args.only if name not in FAULTS]:
        parser.error(f"no fault {unknown[0]!r}; there are: {', '.join(FAULTS)}")
    return args


def _print(console: Console, report: dict[str, Any]) -> None:
    header = ("what dies", "queries", "lost", "asked again", "longest pause, s", "all back, s")
    table = Table(*header, title=f"{report['clients']} clients, {report['target']}")
    for name, one in report["faults"].items():
        figures = (one["queries"], one["lost"], one["asked_again"], one["longest_pause_s"], one["whole_s"])
        table.add_row(name, *(f"{figure:.1f}" if isinstance(figure, float) else str(figure) for figure in figures))
    console.print(table)


if __name__ == "__main__":
    main()
