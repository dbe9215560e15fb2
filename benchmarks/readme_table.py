"""Writes the figures of `benchmarks/results` into docs/figures.md, and the first of them into the README.

Of files whose names differ only in the date (`BENCHMARK_MACHINE_DATE.json`) the newest is used.

    python -m benchmarks.readme_table           # rewrites the parts between the markers
    python -m benchmarks.readme_table --check   # exits with 1 if a document does not match the results
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.figures import Report, Table, headlines, tables

_BEGIN, _END = "<!-- figures:begin -->", "<!-- figures:end -->"
_STEM = re.compile(r"(?P<name>.+)_(?P<date>\d{4}-\d{2}-\d{2})")


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite both documents, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where it would")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="file of the first figures")
    parser.add_argument("--page", type=Path, default=Path("docs/figures.md"), help="file of all figures")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of result files")
    args = parser.parse_args(arguments)
    reports = [json.loads(path.read_text()) | {"path": path} for path in _newest(args.results)]
    written = {}
    for document, shown in ((args.readme, headlines(reports)), (args.page, tables(reports))):
        before = document.read_text()
        if before.count(_BEGIN) != 1 or before.count(_END) != 1:
            sys.exit(f"{document} lacks its markers: put {_BEGIN} and {_END} round the figures, each on its own line")
        after = replaced(before, render(shown, link_from=document.parent))
        if after != before and args.check:
            sys.exit(f"{document} is not what {args.results} says; run `python -m benchmarks.readme_table`")
        written[document] = after
    if not args.check:
        for document, text in written.items():
            document.write_text(text)


def replaced(document: str, figures: str) -> str:
    """The document with new figures between its markers."""
    head, rest = document.split(_BEGIN)
    return f"{head}{_BEGIN}\n\n{figures}\n{_END}{rest.split(_END)[1]}"


def render(shown: Iterable[Table], link_from: Path) -> str:
    """The tables; each row's last cell names the machine and links to the result file."""
    return "\n".join(_markdown(table, link_from) for table in shown)


def _markdown(table: Table, link_from: Path) -> str:
    lines = [f"**{table.title}**", "", _line([*table.header, "where"]), _line(["---"] * (len(table.header) + 1))]
    for cells, report in table.rows:
        lines.append(_line([*cells, f"{_hardware(report)}, {_links(report['path'], link_from)}"]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _newest(results: Path) -> list[Path]:
    """The newest file of each name, sorted by name."""
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
    return ", ".join(f"[{text}]({Path(os.path.relpath(one, link_from)).as_posix()})" for text, one in links)


if __name__ == "__main__":
    main()
