"""Where a service of many engines meets its first limit, by simulation: 1 to 1,000 engines, one distiller, one Redis.

Costs are measured on this machine, in a Redis that the program starts; the simulation is of discrete events. What an
engine answers a second, and the bandwidths of store and engines, are given. Several Redis servers (`--shards`) and
versions handed on from engine to engine are simulated only: osd has neither.

python -m benchmarks.simulate [--engines 1,10,100,1000] [--queries-per-s 2] [--hidden-size 4096] [--shards 1] [--json]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace

from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe_machine
from benchmarks.scale.costs import Costs, measure
from benchmarks.scale.service import Load, Result, simulate
from osd.config.outcomes import OutcomesConfig


def main() -> None:
    """Measure, simulate, and print a table, or one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", default="1,3,10,30,100,300,1000")
    parser.add_argument("--queries-per-s", type=float, default=2.0, help="that each engine answers")
    parser.add_argument("--prompt-tokens", type=int, default=300)
    parser.add_argument("--output-tokens", type=int, default=150)
    parser.add_argument("--hidden-size", type=int, default=4096, help="of the target; 4096 is that of an 8B model")
    parser.add_argument("--weights-mbytes", type=float, default=500.0, help="of a drafter version")
    parser.add_argument("--store-gbytes-per-s", type=float, default=1.0)
    parser.add_argument("--shards", type=int, default=1, help="Redis servers of the stream; osd has one")
    parser.add_argument(
        "--engine-gbytes-per-s", type=float, default=1.0, help="at which engines could hand versions on"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="of simulated time")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    costs = measure(
        prompt_tokens=args.prompt_tokens,
        output_tokens=args.output_tokens,
        hidden_size=args.hidden_size,
        weights_bytes=1e6 * args.weights_mbytes,
    )
    load = Load(
        args.queries_per_s,
        store_bytes_per_s=1e9 * args.store_gbytes_per_s,
        num_shards=args.shards,
        engine_bytes_per_s=1e9 * args.engine_gbytes_per_s,
    )
    sizes = [int(size) for size in args.engines.split(",")]
    runs = {limited: run_all(sizes, costs, load, args.seconds, limited=limited) for limited in (False, True)}
    if args.json:
        report = {
            "benchmark": "simulate",
            "machine": describe_machine(),
            "costs": asdict(costs),
            "load": asdict(load),
            "all": [_row(one) for one in runs[False]],
            "share": [_row(one) for one in runs[True]],
        }
        print(json.dumps(report))
        return
    _print(costs, runs)


def run_all(sizes: list[int], costs: Costs, load: Load, seconds: float, *, limited: bool) -> list[Result]:
    """A result for each number of engines; an ingress for every fifty of them."""
    return [
        simulate(
            size,
            costs,
            replace(load, num_ingress=max(2, size // 50)),
            OutcomesConfig(),
            seconds=seconds,
            limited=limited,
        )
        for size in sizes
    ]


def _row(result: Result) -> dict[str, float | str]:
    return {**asdict(result), "worst": result.worst}


def _print(costs: Costs, runs: dict[bool, list[Result]]) -> None:
    console = Console(width=140)
    console.print(
        f"an outcome: {costs.outcome_bytes / 1e6:.2f} MB, written in {1e3 * costs.put_s:.2f} ms, read in "
        f"{1e3 * costs.read_s:.2f} ms; a report: {1e6 * costs.report_s:.0f} µs; a choice of engine: "
        f"{1e6 * costs.route_s:.1f} µs by engine"
    )
    for limited, results in runs.items():
        table = Table(title="engines record a share of their queries" if limited else "engines record every query")
        for name in (
            "engines",
            "Redis",
            "distiller",
            "supervisor",
            "router",
            "dropped",
            "unread",
            "share",
            "99% wait ms",
        ):
            table.add_column(name, justify="right")
        table.add_column("MB/s", justify="right")
        table.add_column("version to all, s", justify="right")
        table.add_column("by a tree, s", justify="right")
        table.add_column("limit")
        for one in results:
            loads = (one.redis, one.distiller, one.supervisor, one.router, one.dropped, one.unread, one.record_share)
            figures = [
                f"{figure:.1f}" for figure in (one.record_late_ms, one.mbytes_per_s, one.fan_out_s, one.tree_fan_out_s)
            ]
            table.add_row(str(one.engines), *(f"{load:.1%}" for load in loads), *figures, one.worst)
        console.print(table)


if __name__ == "__main__":
    main()
