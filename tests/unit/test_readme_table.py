"""The README's figures are those of the newest results, and nobody copies them by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.readme_table import main, render

_ROOT = Path(__file__).parents[2]
_MARKED = "# osd\n\n<!-- figures:begin -->\n<!-- figures:end -->\n\nProse.\n"


def write(folder: Path, name: str, **report: Any) -> None:
    folder.mkdir(exist_ok=True)
    report = {"benchmark": name.split("_")[0], "machine": {"cpu": "Chip", "cores": 4}, **report}
    (folder / name).write_text(json.dumps(report))


def write_decode(folder: Path, name: str, own: float, **speeds: float) -> None:
    tokens_per_s = {"osd plain": 20.0, "osd speculative": own, "osd untrained": 19.0, **speeds}
    batches = {"1": {"tokens_per_s": tokens_per_s, "acceptance_length": dict.fromkeys(tokens_per_s, 1.5)}}
    write(folder, name, target="tiny", sampled=False, batches=batches)


def test_of_each_machine_the_newest_counts(tmp_path: Path) -> None:
    write_decode(tmp_path / "r", "decode_big_2026-02-01.json", 30.0, generate=10.0)
    write_decode(tmp_path / "r", "decode_big_2026-01-31.json", 99.0)
    write_decode(tmp_path / "r", "decode_small_2025-12-31.json", 25.0)
    (tmp_path / "r" / "decode_big_2026-02-01.png").touch()
    header, line, *rows = render(tmp_path / "r", tmp_path).splitlines()
    assert header.count("|") == line.count("|") and all(row.count("|") == line.count("|") for row in rows)
    where = "4 cores, Chip, [2026-02-01](r/decode_big_2026-02-01.json), [plot](r/decode_big_2026-02-01.png)"
    told = "tiny, 1 query, greedy | 30.0 tokens/s, acceptance length 1.50"
    assert rows[:2] == [
        f"| {told} | osd, plain: 20.0 tokens/s | 1.50 | {where} |",
        f"| {told} | transformers `generate`: 10.0 tokens/s | 3.00 | {where} |",
    ]
    assert "| plain: 20.0 tokens/s" in rows[2] and "| 2.00 |" in rows[2]
    assert "| untrained drafter: 19.0 tokens/s" in rows[3] and "| 0.95 |" in rows[3]
    assert "decode_small_2025-12-31.json" in rows[4] and len(rows) == 6


def test_an_adapted_drafters_figures_say_on_what(tmp_path: Path) -> None:
    speeds = {"osd plain": 20.0, "osd speculative": 50.0}
    lengths = {"osd speculative": {"BFCL": 3.1}}
    batch = {"tokens_per_s": speeds, "acceptance_length": dict.fromkeys(speeds, 3.1)}
    batches = {"1": {**batch, "acceptance_length_by_source": lengths}}
    report = {"target": "tiny", "sampled": False, "sources": ["BFCL"], "skip": 200, "batches": batches}
    write(tmp_path, "decode_m_2026-01-01.json", **report)
    rows = render(tmp_path, tmp_path).splitlines()[2:]
    told = "tiny, 1 query, greedy, BFCL after adapting to 200 other prompts of it"
    assert rows[0].startswith(f"| {told}, BFCL | acceptance length 3.10 |")
    assert rows[1].startswith(f"| {told} | 50.0 tokens/s, acceptance length 3.10 | osd, plain: 20.0 tokens/s | 2.50 |")


def test_every_benchmark_has_its_rows(tmp_path: Path) -> None:
    window = {"tokens_per_s": 9.0, "acceptance_length": 1.2, "speculative_vs_plain": 1.1}
    write(tmp_path, "adapt_m_2026-01-01.json", queries=20, window=10, windows=[window] * 2)
    load = {"tokens_per_s": 50.0, "ttft_p50_ms": 40.0}
    servers = {"osd plain": {"4 clients": {**load, "tokens_per_s": 0.0}}, "osd speculative": {"4 clients": load}}
    write(tmp_path, "serve_m_2026-01-01.json", servers=servers)
    at = {"speculative_tokens_per_s": 300.0, "plain_tokens_per_s": 100.0, "generate_tokens_per_s": 50.0}
    write(
        tmp_path,
        "shapes_gpu_2026-01-01.json",
        machine={"cpu": "Chip", "cores": 4, "gpu": "Card"},
        shape="1b",
        dtype="bfloat16",
        acceptance_asked=0.72,
        copy_bytes_per_s=4e12,
        batches={"1": {**at, "weight_bytes_per_s": 2e12}, "16": {**at, "weight_bytes_per_s": 2e12}},
    )
    tpot = {"training": 12.0, "paused": 10.0, "ratio": 1.2}
    loads = {"0.2 queries/s": {"tpot_p50_ms": tpot, "tpot_p95_ms": tpot, "steps": 9}}
    write(tmp_path, "training-cost_m_2026-01-01.json", benchmark="training_cost", loads=loads)
    swap = {"rows": 1, "swap_ms": 5.0, "step_ms": 10.0, "steps": 0.5, "longest_step_ms": 15.0}
    write(tmp_path, "swap_m_2026-01-01.json", rows=[swap])
    write(tmp_path, "other_m_2026-01-01.json")
    rows = [row.split(" | ") for row in render(tmp_path, tmp_path).splitlines()[2:]]
    assert [(row[0].removeprefix("| "), row[3]) for row in rows] == [
        ("learning from traffic, first 10 of 20 queries", "1.10"),
        ("learning from traffic, last 10 of 20 queries", "1.10"),
        ("over HTTP, 4 clients", ""),
        ("1b shape, random bfloat16 weights, 1 query, acceptance set to 0.72", "3.00"),
        ("1b shape, random bfloat16 weights, 1 query, acceptance set to 0.72", "6.00"),
        ("1b shape, random bfloat16 weights, plain", "0.50"),
        ("1b shape, random bfloat16 weights, 16 queries at once, acceptance set to 0.72", "3.00"),
        ("1b shape, random bfloat16 weights, 16 queries at once, acceptance set to 0.72", "6.00"),
        ("a token beside training, 0.2 queries/s, 9 steps trained, p50", "1.20"),
        ("a token beside training, 0.2 queries/s, 9 steps trained, p95", "1.20"),
        ("hot swap, 1 query", "0.50"),
        ("longest step while it is prepared, 1 query", "1.50"),
    ]
    assert rows[3][4].startswith("Card, [2026-01-01]")


def test_it_writes_between_the_markers_and_checks(tmp_path: Path) -> None:
    write_decode(tmp_path / "r", "decode_big_2026-02-01.json", 30.0)
    readme = tmp_path / "README.md"
    readme.write_text(_MARKED)
    options = ["--readme", str(readme), "--results", str(tmp_path / "r")]
    with pytest.raises(SystemExit, match=r"run `python -m benchmarks\.readme_table`"):
        main([*options, "--check"])
    assert readme.read_text() == _MARKED
    main(options)
    main([*options, "--check"])
    written = readme.read_text()
    assert written.startswith("# osd\n\n<!-- figures:begin -->\n\n| what") and written.endswith("\n\nProse.\n")
    main(options)
    assert readme.read_text() == written


def test_a_readme_without_markers_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# osd\n")
    with pytest.raises(SystemExit, match="lacks its markers"):
        main(["--readme", str(readme), "--results", str(tmp_path)])
    assert readme.read_text() == "# osd\n"


def test_our_readme_says_what_our_results_say() -> None:
    main(["--check", "--readme", str(_ROOT / "README.md"), "--results", str(_ROOT / "benchmarks" / "results")])
