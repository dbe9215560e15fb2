"""The figures of loads: as a table, and for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from serving.bench.load import LoadResult

PERCENTILES = (50, 95, 99)


def figures(load: LoadResult) -> dict[str, float | int | None]:
    """A load's figures for JSON; null for what the server does not report."""
    return {
        "queries": len(load.answers),
        "failed": load.failed,
        "tokens_per_s": round(load.tokens_per_s, 2) or None,
        **{f"ttft_p{p}_ms": _rounded(load.percentile_ms("ttft_s", p), 1) for p in PERCENTILES},
        **{f"tpot_p{p}_ms": _rounded(load.percentile_ms("tpot_s", p), 2) for p in PERCENTILES},
        **{f"queue_p{p}_ms": _rounded(load.percentile_ms("queue_s", p), 1) for p in PERCENTILES},
        "acceptance_rate": _rounded(load.acceptance_rate, 3),
        "acceptance_length": _rounded(load.acceptance_length, 3),
    }


def print_table(console: Console, results: Mapping[str, Sequence[LoadResult]]) -> None:
    """A row a load, by server; `-` for what the server does not report."""
    table = Table(title="under load")
    columns = ["server", "load", "queries", "failed", "tokens/s"]
    columns += [f"TTFT p{p} ms" for p in PERCENTILES] + [f"per token p{p} ms" for p in PERCENTILES]
    columns += ["queue p95 ms", "accepted", "acceptance length"]
    for column in columns:
        table.add_column(column, justify="right")
    for server, loads in results.items():
        for load in loads:
            table.add_row(
                server,
                load.label,
                str(len(load.answers)),
                str(load.failed),
                _told(load.tokens_per_s or math.nan, ".1f"),
                *(_told(load.percentile_ms("ttft_s", p), ".0f") for p in PERCENTILES),
                *(_told(load.percentile_ms("tpot_s", p), ".1f") for p in PERCENTILES),
                _told(load.percentile_ms("queue_s", 95), ".0f"),
                _told(load.acceptance_rate, ".0%"),
                _told(load.acceptance_length, ".2f"),
            )
    console.print(table)


def _told(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _rounded(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)
