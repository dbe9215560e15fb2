"""Makes an experiment's tables and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.adaptation.lab import Run
from benchmarks.adaptation.scores import Score, length_gain, queries_to_gain, total

_SHARE = 0.8


def summarise(runs: Mapping[str, Sequence[Run]], window: int) -> dict[str, Any]:
    """Figures by arm: over all queries, by window, by block of one domain; gains are relative to the first arm.

    Args:
        runs: by arm, one per seed, over the same queries.
        window: number of queries for running figures.
    """
    base, *_ = runs.values()
    return {arm: _of_arm(own, base, window) for arm, own in runs.items()}


def _of_arm(runs: Sequence[Run], base: Sequence[Run], window: int) -> dict[str, Any]:
    figures = _figures(runs, base, 0, len(runs[0].scores))
    figures["windows"] = [
        _figures(runs, base, start, start + window) for start in range(0, len(runs[0].scores) - window + 1, window)
    ]
    figures["blocks"] = [_figures(runs, base, *bounds) for bounds in _blocks(runs[0].domains, window)]
    by_domain = sorted(set(runs[0].domains))
    figures["domains"] = {domain: _rounded(total(_of_domain(runs, domain))) for domain in by_domain}
    figures["queries_to_80%_of_gain"] = [
        queries_to_gain(run.scores, other.scores, share=_SHARE, window=window)
        for run, other in zip(runs, base, strict=True)
    ]
    figures["drifts"] = [run.drifts for run in runs]
    spent = [run.spent for run in runs]
    figures["spent_a_run"] = {
        "steps": round(sum(one.steps for one in spent) / len(spent)),
        "trained_tokens": round(sum(one.trained_tokens for one in spent) / len(spent)),
        "core_minutes": round(sum(one.core_s for one in spent) / len(spent) / 60, 2),
        "versions": round(sum(one.versions for one in spent) / len(spent), 1),
    }
    return figures


def _figures(runs: Sequence[Run], base: Sequence[Run], start: int, end: int) -> dict[str, Any]:
    own, other = ([run.scores[start:end] for run in some] for some in (runs, base))
    gain = length_gain(own, other)
    figures = _rounded(total([score for scores in own for score in scores]))
    return {
        "queries": [start + 1, min(end, len(runs[0].scores))],
        "domain": runs[0].domains[start] if len(set(runs[0].domains[start:end])) == 1 else "mixed",
        **figures,
        "gain": {"mean": round(gain.mean, 3), "low": round(gain.low, 3), "high": round(gain.high, 3)},
    }


def _rounded(score: Score) -> dict[str, Any]:
    return {"length": round(score.length, 3), "first": round(score.first, 3), "alpha": round(score.alpha, 3)}


def _blocks(domains: Sequence[str], window: int) -> list[tuple[int, int]]:
    """The ranges in which one domain lasts for at least a window."""
    bounds, start = [], 0
    for _, group in groupby(domains):
        num = len(list(group))
        if num >= window:
            bounds.append((start, start + num))
        start += num
    return bounds


def _of_domain(runs: Sequence[Run], domain: str) -> list[Score]:
    return [score for run in runs for score, own in zip(run.scores, run.domains, strict=True) if own == domain]


def show(console: Console, summary: Mapping[str, dict[str, Any]], num_seeds: int) -> None:
    """Print two tables: each arm over all queries, and by window."""
    first = next(iter(summary))
    table = Table(title=f"over all queries, {num_seeds} seeds; gain over {first!r} with its 95% interval")
    for column in ("arm", "length", "first token", "alpha", "gain", "queries to 80%", "trained tokens", "core-minutes"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, figures in summary.items():
        table.add_row(arm, *_cells(figures), str(figures["queries_to_80%_of_gain"]), *_spent(figures))
    console.print(table)
    table = Table(title="acceptance length by window of queries")
    table.add_column("queries")
    table.add_column("domain")
    for arm in summary:
        table.add_column(arm, justify="right")
    windows = [figures["windows"] for figures in summary.values()]
    for row in zip(*windows, strict=True):
        start, end = row[0]["queries"]
        table.add_row(f"{start}-{end}", row[0]["domain"], *(f"{one['length']:.2f}" for one in row))
    console.print(table)
    for arm, figures in summary.items():
        for number, drifts in enumerate(figures["drifts"]):
            for query, message in drifts:
                console.print(f"{arm}, run {number}: after {query} queries {message}")


def _cells(figures: Mapping[str, Any]) -> list[str]:
    gain = figures["gain"]
    lengths = [f"{figures[name]:.3f}" for name in ("length", "first", "alpha")]
    return [*lengths, f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"]


def _spent(figures: Mapping[str, Any]) -> list[str]:
    spent = figures["spent_a_run"]
    return [f"{spent['trained_tokens']:,}", f"{spent['core_minutes']:.2f}"]
