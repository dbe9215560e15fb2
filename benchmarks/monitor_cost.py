"""What the monitor costs: on the engine's thread for each row and round, and in the supervisor for each second.

    python -m benchmarks.monitor_cost [--domains 20] [--json]

Prints microseconds of counting one row's round (compare with the milliseconds of a round), milliseconds of making a
report and of taking it into the history, and the bytes of one bucket. No model and no Redis are needed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec

from osd.meters.served_totals import ServedTotals
from osd.monitor.buckets import Bucket, Series
from osd.monitor.history import History
from osd.monitor.totals import Totals

_NUM_ROUNDS = 20_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, default=20, help="Domains that queries have.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    options = parser.parse_args()
    figures = measure(options.domains)
    if options.json:
        print(json.dumps(figures))  # noqa: T201 - the program's output
        return
    for name, value in figures.items():
        print(f"{name:28} {value:10.3f}")  # noqa: T201 - the program's output


def measure(num_domains: int) -> dict[str, float]:
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
        for of, figures in totals.added("engine", str(time.monotonic_ns()), rows, since_start=True):
            history.add(of, figures)

    taking_s = _seconds(take)
    bucket = Bucket(0.0, dict(rows))
    return {
        "count a row's round, us": counting_s / _NUM_ROUNDS * 1e6,
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
