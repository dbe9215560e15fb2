"""Writes the README's figures from `benchmarks/results`, so that none of them is copied by hand.

Of files whose names differ in nothing but their date (`BENCHMARK_MACHINE_DATE.json`) the newest counts.

    python -m benchmarks.readme_table           # rewrites what stands between the markers
    python -m benchmarks.readme_table --check   # exits with 1 where the README is not what the results say
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

_BEGIN, _END = "<!-- figures:begin -->", "<!-- figures:end -->"
_STEM = re.compile(r"(?P<name>.+)_(?P<date>\d{4}-\d{2}-\d{2})")
_HEADER = "| what | osd | beside it | osd / beside it | where |\n|---|---|---|---|---|\n"
_NAMES = {
    "osd plain": "osd, plain",
    "generate": "transformers `generate`",
    "assisted": "transformers, assisted",
    "prompt lookup": "transformers, prompt lookup",
    "continuous batching": "transformers, continuous batching",
    "llama.cpp": "llama.cpp, the GGUF file's own weights",
    "llama.cpp bf16": "llama.cpp, bfloat16 weights",
}
_VARIANTS = {"osd untrained": "untrained drafter: ", "osd model drafter": "a small LM as drafter: "}
_INT4 = {"osd plain int4": "plain, layers in int4: ", "osd speculative int4": "layers in int4: "}
_OWN = {**_VARIANTS, **_INT4, "osd plain": "plain: "}

Report: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A figure and what it is compared with."""

    what: str
    osd: str
    beside: str = ""
    ratio: float | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite the README, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where it would")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="file with the two markers")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of result files")
    args = parser.parse_args(arguments)
    before = args.readme.read_text()
    if before.count(_BEGIN) != 1 or before.count(_END) != 1:
        sys.exit(f"{args.readme} lacks its markers: put {_BEGIN} and {_END} round the figures, each on its own line")
    after = replaced(before, render(args.results, link_from=args.readme.parent))
    if after == before:
        return
    if args.check:
        sys.exit(f"{args.readme} is not what {args.results} says; run `python -m benchmarks.readme_table`")
    args.readme.write_text(after)


def replaced(readme: str, figures: str) -> str:
    """The README with other figures between its markers."""
    head, rest = readme.split(_BEGIN)
    return f"{head}{_BEGIN}\n\n{figures}\n{_END}{rest.split(_END)[1]}"


def render(results: Path, link_from: Path) -> str:
    """The table: one row a figure, benchmarks in the order of `_ROWS`."""
    reports = [(json.loads(path.read_text()), path) for path in _newest(results)]
    rows = []
    for benchmark, rows_of in _ROWS.items():
        for report, path in reports:
            if report["benchmark"] != benchmark:
                continue
            where = f"{_hardware(report)}, {_links(path, link_from)}"
            for row in rows_of(report):
                ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
                rows.append(f"| {row.what} | {row.osd} | {row.beside} | {ratio} | {where} |\n")
    return _HEADER + "".join(rows)


def _newest(results: Path) -> list[Path]:
    """The newest file of each name, by name."""
    found: dict[str, tuple[str, Path]] = {}
    for path in results.glob("*.json"):
        if parts := _STEM.fullmatch(path.stem):
            found[parts["name"]] = max(found.get(parts["name"], ("", path)), (parts["date"], path))
    return [found[name][1] for name in sorted(found)]


def _hardware(report: Report) -> str:
    machine = report["machine"]
    if "gpu" in machine and report.get("device") != "cpu":
        return str(machine["gpu"])
    return f"{machine['cores']} cores, {machine['cpu']}"


def _links(path: Path, link_from: Path) -> str:
    links = [(path.stem.rpartition("_")[2], path)]
    if path.with_suffix(".png").exists():
        links.append(("plot", path.with_suffix(".png")))
    return ", ".join(f"[{text}]({one.resolve().relative_to(link_from.resolve()).as_posix()})" for text, one in links)


def _adapt(report: Report) -> Iterator[Row]:
    """The demo: the first and the last window of queries, and the last prompts again."""
    size, windows = report["window"], report["windows"]
    start = " from the shipped drafter on" if report.get("pretrained") else ""
    for label, window in (("first", windows[0]), ("last", windows[-1])):
        yield Row(
            f"learning from traffic{start}, {label} {size} of {report['queries']} queries",
            f"{_speed(window['tokens_per_s'])}, acceptance length {window['acceptance_length']:.2f}",
            "plain, in the same minutes",
            window["speculative_vs_plain"],
        )
    closing = report.get("closing", {})
    for training, told in (("on", "the trainer has a core"), ("off", "no training, all cores serve")):
        if run := closing.get(training):
            yield Row(
                f"its last {size} prompts again{start}, {told}",
                _speed(run["speculative_tokens_per_s"]),
                f"plain: {_speed(run['plain_tokens_per_s'])}",
                run["speculative_vs_plain"],
            )
    if {"on", "off"} <= closing.keys():
        on, off = closing["on"]["plain_tokens_per_s"], closing["off"]["plain_tokens_per_s"]
        yield Row("plain, the trainer has a core", _speed(on), f"no training, all cores: {_speed(off)}", on / off)


def _decode(report: Report) -> Iterator[Row]:
    """Speculative beside plain and the peers; at one query, other drafters and peers beside plain, too."""
    manner = "sampled" if report.get("sampled") else "greedy"
    if report.get("skip"):
        manner += f", {' and '.join(report['sources'])} after adapting to {report['skip']} other prompts of it"
    if report.get("speculation_length") is not None:
        manner += f", always {report['speculation_length']} proposed"
    for batch, figures in report["batches"].items():
        speeds, lengths = figures["tokens_per_s"], figures["acceptance_length"]
        what = f"{report['target']}, {_queries(batch)}, {manner}"
        pairs = [("osd speculative", name) for name in speeds if name == "osd plain" or not name.startswith("osd")]
        if batch == "1":
            pairs += [("osd plain", "generate")] + [(name, "osd plain") for name in _VARIANTS]
            pairs += [(name, "llama.cpp") for name in _INT4]
            for source, length in figures.get("acceptance_length_by_source", {}).get("osd speculative", {}).items():
                yield Row(f"{what}, {source}", f"acceptance length {length:.2f}")
        for own, peer in pairs:
            if own in speeds and peer in speeds:
                told = f"{_OWN.get(own, '')}{_speed(speeds[own])}, acceptance length {lengths[own]:.2f}"
                beside = f"{_NAMES.get(peer, peer)}: {_speed(speeds[peer])}"
                yield Row(what, told, beside, speeds[own] / speeds[peer])


def _serve(report: Report) -> Iterator[Row]:
    """Speculative beside plain, under each load."""
    servers = report["servers"]
    plain = servers.get("osd plain", {})
    for load, own in servers.get("osd speculative", {}).items():
        if theirs := plain.get(load):
            ratio = own["tokens_per_s"] / theirs["tokens_per_s"] if theirs["tokens_per_s"] else None
            yield Row(f"over HTTP, {load}", _load(own), f"osd, plain: {_load(theirs)}", ratio)


def _swap(report: Report) -> Iterator[Row]:
    """A swap in steps, and the longest step while it was prepared."""
    for at in report["rows"]:
        step_ms, longest_ms = at["step_ms"], at["longest_step_ms"]
        queries, step = _queries(at["rows"]), f"a step: {step_ms:.1f} ms"
        yield Row(f"hot swap, {queries}", f"{at['swap_ms']:.1f} ms", step, at["steps"])
        yield Row(f"longest step while it is prepared, {queries}", f"{longest_ms:.1f} ms", step, longest_ms / step_ms)


def _shapes(report: Report) -> Iterator[Row]:
    """Speed by shape; the acceptance is set, not learnt, and the row says so."""
    shape = f"{report['shape']} shape, random {report['dtype']} weights"
    for batch, at in report["batches"].items():
        told, own = f"acceptance set to {report['acceptance_asked']:g}", at["speculative_tokens_per_s"]
        for peer in ("osd plain", "generate"):
            speed = at[f"{peer.removeprefix('osd ')}_tokens_per_s"]
            beside = f"{_NAMES[peer]}: {_speed(speed)}"
            yield Row(f"{shape}, {_queries(batch)}, {told}", _speed(own), beside, own / speed)
        if batch == "1":
            read, limit = at["weight_bytes_per_s"], report["copy_bytes_per_s"]
            yield Row(f"{shape}, plain", f"reads weights at {_rate(read)}", f"a copy: {_rate(limit)}", read / limit)


def _training_cost(report: Report) -> Iterator[Row]:
    """Time per token beside training."""
    for load, at in report["loads"].items():
        for percentile in ("p50", "p95"):
            tpot = at[f"tpot_{percentile}_ms"]
            yield Row(
                f"a token beside training, {load}, {at['steps']} steps trained, {percentile}",
                f"{tpot['training']:.1f} ms",
                f"training paused: {tpot['paused']:.1f} ms",
                tpot["ratio"],
            )


_ROWS: dict[str, Callable[[Report], Iterator[Row]]] = {
    "adapt": _adapt,
    "decode": _decode,
    "serve": _serve,
    "shapes": _shapes,
    "training_cost": _training_cost,
    "swap": _swap,
}


def _speed(tokens_per_s: float) -> str:
    return f"{tokens_per_s:.1f} tokens/s"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:,.0f} GB/s"


def _load(figures: Report) -> str:
    return f"{_speed(figures['tokens_per_s'])}, first token after {figures['ttft_p50_ms']:.0f} ms (median)"


def _queries(number: int | str) -> str:
    return "1 query" if int(number) == 1 else f"{number} queries at once"


if __name__ == "__main__":
    main()
