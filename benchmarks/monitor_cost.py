"""What the monitor costs serving: by counting, and in a service under load with and without pages open.

    python -m benchmarks.monitor_cost [--domains 20] [--json]
    python -m benchmarks.monitor_cost --live 60 [--blocks 6] [--clients 4] [--pages 2] [--target smollm2] [--json]

The first needs no model and no Redis. It prints microseconds of counting one row's round on the engine's thread, as a
share of a row's round that takes `--round-ms`, milliseconds of making a report and of taking it into the history (once
a second), and the bytes of one bucket.

The second runs `osd serve` without training. Clients that never pause ask it in blocks of so many seconds, in pairs:
one while nobody looks, one with open admin pages, each of which follows the live stream and asks for the history. It
prints tokens/s, what the pages cost of them, and the processor time of each process as a share of all processors. All
that the supervisor does then is counted as the monitor's, and so is what the other processes but the engine take more
while pages are open. A pair's tokens/s differ by a percent or two by chance; shares of processors do not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec

from benchmarks.monitor_live import measure_live
from osd.meters.served_totals import ServedTotals
from osd.monitor.buckets import Bucket, Series
from osd.monitor.history import History
from osd.monitor.totals import Totals

_NUM_ROUNDS = 20_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, default=20, help="Domains that queries have.")
    parser.add_argument("--round-ms", type=float, default=7.0, help="What a row's round takes.")
    parser.add_argument("--live", type=float, default=0.0, help="Seconds of a block; 0: count only.")
    parser.add_argument("--blocks", type=int, default=6, help="Blocks, an even number, half of them with open pages.")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--pages", type=int, default=2, help="Open admin pages.")
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    options = parser.parse_args()
    if options.blocks < 2 or options.blocks % 2:
        parser.error("--blocks must be an even number of at least 2")
    if options.live:
        figures = measure_live(
            options.target, options.live, options.blocks, num_clients=options.clients, num_pages=options.pages
        )
    else:
        figures = measure(options.domains, options.round_ms)
    if options.json:
        print(json.dumps(figures))  # noqa: T201 - the program's output
        return
    for name, value in figures.items():
        print(f"{name:44} {value:10.3f}")  # noqa: T201 - the program's output


def measure(num_domains: int, round_ms: float) -> dict[str, float]:
    """All figures, for queries of so many domains, drafted by two versions."""
    served = ServedTotals()
    series = [Series(f"domain-{number}", "feature", version) for number in range(num_domains) for version in (1, 2)]

    def count_rounds() -> None:
        for number in range(_NUM_ROUNDS):
            of = series[number % len(series)]
            served.add_round(of, proposed=4, accepted=number % 5, committed=number % 5 + 1, took_ms=5.0, plain_ms=9.0)

    counting_s = _seconds(count_rounds)
    reporting_s = _seconds(lambda: served.take(everything=True))
    rows = served.take(everything=True)
    totals, history = Totals(), History(None)

    def take() -> None:
        for of, figures in totals.added("engine", str(time.monotonic_ns()), rows, number=0):
            history.add(of, figures)

    taking_s = _seconds(take)
    bucket = Bucket(0.0, dict(rows))
    counting_us = counting_s / _NUM_ROUNDS * 1e6
    return {
        "count a row's round, us": counting_us,
        "of a row's round, %": counting_us / (10 * round_ms),
        "make a report, ms": reporting_s * 1e3,
        "take a report, ms": taking_s * 1e3,
        "a bucket, bytes": float(len(msgspec.msgpack.encode(bucket))),
    }


def _seconds(work: Callable[[], Any]) -> float:
    """The least time of five."""
    times = []
    for _ in range(5):
        began_s = time.perf_counter()
        work()
        times.append(time.perf_counter() - began_s)
    return min(times)


if __name__ == "__main__":
    main()
