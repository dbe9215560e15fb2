"""The cost per token of training beside serving: one server, training paused and resumed in turn.

Blocks of queries alternate, so that a machine that slows down affects both. The gate's margin is unreachable: a
published drafter would speed up later blocks. The lookup of earlier text is off: it would copy the answers to prompts
that were asked before.

Under a closed loop the engine is never idle, and training takes its share of the time (`trainer.max_serving_cost`);
Poisson arrivals leave gaps, in which training is interrupted by the next query.

    python -m benchmarks.training_cost [--clients 1] [--rates 0.2] [--blocks 3] [--json] [--serve-flag=…]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import secrets
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.prompts import tool_call_prompts
from benchmarks.server import osd_server
from osd.config.settings import default_state_dir
from serving.bench.load import Load, LoadResult

_TOKEN = secrets.token_hex()
_CONFIG = f"""
[trainer]
gate_margin = 100.0
[drafter]
suffix = false
[server]
admin_token_sha256 = "{hashlib.sha256(_TOKEN.encode()).hexdigest()}"
"""
_PERCENTILES = (50, 95)


def main() -> None:
    """Run the benchmark."""
    args = _arguments()
    console = Console(stderr=args.json)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    state_dir = Path(args.state_dir) if args.state_dir else default_state_dir()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "osd.toml"
        config.write_text(_CONFIG)
        with osd_server(state_dir, out / "training-cost.log", ["--config", str(config), *args.serve_flag]) as url:
            results = asyncio.run(_measure(args, url))
    table = Table(title="time per output token, ms, and output tokens per second")
    for column in ("load", "training", "p50", "p95", "tokens/s", "steps trained"):
        table.add_column(column, justify="right")
    for label, (paused, training, steps) in results.items():
        for state, load, trained in (("paused", paused, 0), ("on", training, steps)):
            figures = (f"{load.percentile_ms('tpot_s', p):.2f}" for p in _PERCENTILES)
            table.add_row(label, state, *figures, f"{load.tokens_per_s:.1f}", str(trained))
    console.print(table)
    if args.json:
        print(json.dumps(_report(results)))


async def _measure(args: argparse.Namespace, url: str) -> dict[str, tuple[LoadResult, LoadResult, int]]:
    """By load: the result with training paused, the result with training, and the training steps in the latter."""
    results = {}
    async with (
        Load(url, tool_call_prompts(), max_tokens=args.max_tokens) as load,
        httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {_TOKEN}"}, timeout=60) as admin,
    ):
        await load.closed(2, 16)  # warms up, and gives the trainer outcomes
        closed = [partial(load.closed, clients, args.queries) for clients in args.clients]
        for ask in [*closed, *(partial(load.open, rate, args.open_queries) for rate in args.rates)]:
            blocks: dict[bool, list[LoadResult]] = {False: [], True: []}
            steps = 0
            for number in range(2 * args.blocks):
                is_training = number % 2 == 1
                (await admin.post(f"/admin/api/{'resume' if is_training else 'pause'}")).raise_for_status()
                before = await _steps(admin)
                blocks[is_training].append(await ask())
                steps += (await _steps(admin) - before) * is_training
            paused, training = _joined(blocks[False]), _joined(blocks[True])
            results[paused.label] = (paused, training, steps)
    return results


async def _steps(admin: httpx.AsyncClient) -> int:
    response = await admin.get("/admin/api/status")
    response.raise_for_status()
    return int(response.json()["trainer"]["steps"])


def _joined(blocks: list[LoadResult]) -> LoadResult:
    answers = [answer for block in blocks for answer in block.answers]
    return LoadResult(blocks[0].label, answers, sum(b.failed for b in blocks), sum(b.elapsed_s for b in blocks))


def _report(results: dict[str, tuple[LoadResult, LoadResult, int]]) -> dict[str, Any]:
    loads = {}
    for label, (paused, training, steps) in results.items():
        by_percentile = {
            f"tpot_p{p}_ms": {
                "paused": round(paused.percentile_ms("tpot_s", p), 2),
                "training": round(training.percentile_ms("tpot_s", p), 2),
                "ratio": round(training.percentile_ms("tpot_s", p) / paused.percentile_ms("tpot_s", p), 3),
            }
            for p in _PERCENTILES
        }
        speeds = {
            "paused": round(paused.tokens_per_s, 1),
            "training": round(training.tokens_per_s, 1),
            "ratio": round(training.tokens_per_s / paused.tokens_per_s, 3),
        }
        failed = paused.failed + training.failed
        loads[label] = {**by_percentile, "tokens_per_s": speeds, "steps": steps, "failed": failed}
    return {"benchmark": "training_cost", "machine": describe_machine(), "loads": loads}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--clients", default="1", help="closed loops, with commas; empty for none")
    parser.add_argument("--rates", default="0.2", help="open loops: queries a second, with commas; empty for none")
    parser.add_argument("--blocks", type=int, default=3, help="blocks of queries each way")
    parser.add_argument("--queries", type=int, default=40, help="queries of a block of a closed loop, for some 25 s")
    parser.add_argument("--open-queries", type=int, default=8, help="queries of a block of an open loop")
    parser.add_argument("--max-tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--state-dir", default="", help="osd's state folder (default: the user's)")
    parser.add_argument("--serve-flag", action="append", default=[], help="a further flag for osd serve; repeatable")
    parser.add_argument("--out", default="demo-out", help="folder for the server's log")
    parser.add_argument("--json", action="store_true", help="end with one JSON line on stdout; the rest goes to stderr")
    args = parser.parse_args()
    args.clients = [int(number) for number in args.clients.split(",") if number]
    args.rates = [float(number) for number in args.rates.split(",") if number]
    return args


if __name__ == "__main__":
    main()
