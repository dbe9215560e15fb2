"""The documents' figures are those of the newest results, and nobody copies them by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.readme_table import main

_ROOT = Path(__file__).parents[3]
_MARKED = "# osd\n\n<!-- figures:begin -->\n<!-- figures:end -->\n\nProse.\n"


def write(folder: Path, name: str, **report: Any) -> None:
    folder.mkdir(exist_ok=True)
    report = {"benchmark": name.split("_")[0], "machine": {"cpu": "Chip", "cores": 4}, **report}
    (folder / name).write_text(json.dumps(report))


def write_decode(folder: Path, name: str, own: float, **speeds: float) -> None:
    tokens_per_s = {"osd plain": 20.0, "osd speculative": own, "osd untrained": 19.0, **speeds}
    batches = {"1": {"tokens_per_s": tokens_per_s, "acceptance_length": dict.fromkeys(tokens_per_s, 1.5)}}
    write(folder, name, target="tiny", sampled=False, batches=batches)


def rows_of(results: Path, document: str = "figures.md") -> dict[str, list[list[str]]]:
    """Each table's cells, the header among them, by its title; every line has as many as the header."""
    for name in ("README.md", "figures.md"):
        (results / name).write_text(_MARKED)
    main(["--readme", f"{results}/README.md", "--page", f"{results}/figures.md", "--results", str(results)])
    found = {}
    text = (results / document).read_text().split("<!-- figures:end -->")[0]
    for table in text.split("**")[1:]:
        title_or_lines = table.strip().splitlines()
        if len(title_or_lines) == 1:
            title = title_or_lines[0]
            continue
        cells = [line.strip("|").split("|") for line in title_or_lines]
        assert {len(line) for line in cells} == {len(cells[0])}
        found[title] = [[cell.strip() for cell in line] for line in (cells[0], *cells[2:])]
    return found


def test_of_each_machine_the_newest_counts(tmp_path: Path) -> None:
    write_decode(tmp_path, "decode_big_2026-02-01.json", 30.0, generate=10.0)
    write_decode(tmp_path, "decode_big_2026-01-31.json", 99.0)
    write_decode(tmp_path, "decode_small_2025-12-31.json", 25.0)
    (tmp_path / "decode_big_2026-02-01.png").touch()
    found = rows_of(tmp_path)
    big = "4 cores, Chip, [2026-02-01](decode_big_2026-02-01.json), [plot](decode_big_2026-02-01.png)"
    small = "4 cores, Chip, [2025-12-31](decode_small_2025-12-31.json)"
    what = "tiny, 1 query, greedy"
    assert found == {
        "Decoding, tokens/s (osd / beside it)": [
            ["what", "osd", "osd, plain", "transformers `generate`", "where"],
            [what, "30.0 (acceptance length 1.50)", "20.0 (1.50x)", "10.0 (3.00x)", big],
            [what, "25.0 (acceptance length 1.50)", "20.0 (1.25x)", "", small],
        ],
        "Other drafters and weights, tokens/s": [
            ["what", "osd", "beside it", "osd / beside it", "where"],
            ["1 query, greedy: an untrained drafter", "19.0", "osd, plain: 20.0", "0.95", big],
            ["1 query, greedy: an untrained drafter", "19.0", "osd, plain: 20.0", "0.95", small],
        ],
    }


def test_an_adapted_drafters_figures_say_on_what(tmp_path: Path) -> None:
    speeds = {"osd plain": 20.0, "osd speculative": 50.0}
    batch = {
        "tokens_per_s": speeds,
        "acceptance_length": dict.fromkeys(speeds, 3.1),
        "acceptance_length_by_source": {"osd speculative": {"BFCL": 3.1}},
    }
    report = {"target": "tiny", "sampled": False, "sources": ["BFCL"], "skip": 200, "batches": {"1": batch}}
    write(tmp_path, "decode_m_2026-01-01.json", **report)
    speed, length = rows_of(tmp_path).values()
    told = "greedy, BFCL after adapting to 200 other prompts of it"
    assert speed[1][:3] == [f"tiny, 1 query, {told}", "50.0 (acceptance length 3.10)", "20.0 (2.50x)"]
    assert length[0][:2] == ["what", "BFCL"]
    assert length[1][:2] == [told, "3.10"]


def write_one_of_each(tmp_path: Path) -> None:
    """The results of every benchmark that has a table, and of one that has none."""
    window = {"tokens_per_s": 9.0, "acceptance_length": 1.2, "speculative_vs_plain": 1.1}
    run = {"speculative_tokens_per_s": 8.0, "plain_tokens_per_s": 4.0, "speculative_vs_plain": 2.0}
    closing = {"on": run}
    write(tmp_path, "adapt_m_2026-01-01.json", queries=20, window=10, windows=[window] * 2, closing=closing)
    load = {"tokens_per_s": 50.0, "ttft_p50_ms": 40.0}
    servers = {"osd plain": {"4 clients": {**load, "tokens_per_s": 0.0}}, "osd speculative": {"4 clients": load}}
    write(tmp_path, "serve_m_2026-01-01.json", servers=servers)
    turns = [{"prompt_tokens": 30, "cached_tokens": 0, "ttft_p50_ms": 90.0}]
    turns += [{"prompt_tokens": 80, "cached_tokens": 60, "ttft_p50_ms": 40.0}]
    peer = [{"prompt_tokens": 80, "cached_tokens": None, "ttft_p50_ms": 100.0}] * 2
    write(tmp_path, "conversation_m_2026-01-01.json", servers={"osd": {"1 client": turns}, "peer": {"1 client": peer}})
    at = {"speculative_tokens_per_s": 300.0, "plain_tokens_per_s": 100.0, "generate_tokens_per_s": 50.0}
    one = {**at, "weight_bytes_per_s": 2e12, "assisted_tokens_per_s": 60.0}
    many = {**at, "weight_bytes_per_s": 1e12, "assisted_tokens_per_s": None}
    write(
        tmp_path,
        "shapes_gpu_2026-01-01.json",
        machine={"cpu": "Chip", "cores": 4, "gpu": "Card"},
        shape="1b",
        dtype="bfloat16",
        drafter="model",
        small_lm="135m",
        acceptance_asked=0.72,
        copy_bytes_per_s=4e12,
        batches={"1": one, "16": many},
    )
    tpot = {"training": 12.0, "paused": 10.0, "ratio": 1.2}
    trained = {"tpot_p50_ms": tpot, "tpot_p95_ms": tpot, "steps": 9}
    speed = {"training": 90.0, "paused": 100.0, "ratio": 0.9}
    loads = {"0.2 queries/s": trained, "1 client": {**trained, "tokens_per_s": speed}}
    write(tmp_path, "training-cost_m_2026-01-01.json", benchmark="training_cost", loads=loads)
    paused = {"tpot_p50_ms": 2.0, "tpot_p95_ms": 4.0, "tpot_p50_ratio": 1.0, "tpot_p95_ratio": 1.0}
    beside = {"tpot_p50_ms": 3.0, "tpot_p95_ms": 8.0, "tpot_p50_ratio": 1.5, "tpot_p95_ratio": 2.0}
    by_mode = {"paused": paused, **dict.fromkeys(("yielding", "always"), {**beside, "trained_tokens_per_s": 900.0})}
    write(
        tmp_path,
        "shared-device_m_2026-01-01.json",
        benchmark="shared_device",
        shape="1b",
        dtype="bfloat16",
        busy_asked=0.3,
        max_utilisation=0.5,
        loads={"closed": by_mode, "open": by_mode},
    )
    swap = {"rows": 1, "swap_ms": 5.0, "step_ms": 10.0, "steps": 0.5, "longest_step_ms": 15.0}
    write(tmp_path, "swap_m_2026-01-01.json", rows=[swap])
    write(tmp_path, "other_m_2026-01-01.json")


def test_every_benchmark_has_its_table(tmp_path: Path) -> None:
    write_one_of_each(tmp_path)
    found = rows_of(tmp_path)
    assert {title: [row[:-1] for row in rows[1:]] for title, rows in found.items()} == {
        "Learning from traffic": [
            ["first 10 of 20 queries", "9.0", "", "1.20", "1.10"],
            ["last 10 of 20 queries", "9.0", "", "1.20", "1.10"],
            ["the last 10 prompts again, the trainer has a core", "8.0", "4.0", "", "2.00"],
        ],
        "Over HTTP": [["4 clients", "50.0", "0.0", "", "40 ms", "40 ms"]],
        "Conversations": [
            ["1 client, turn 2: 80 tokens, of which 60 were read before", "40 ms", "peer", "100 ms", "2.50"]
        ],
        "By a model's shape": [
            [
                "1b, random bfloat16 weights, a small LM (135m) as drafter, 1 query",
                "300.0 (acceptance set to 0.72)",
                "100.0 (3.00x)",
                "50.0 (6.00x)",
                "60.0 (5.00x)",
                "2,000 GB/s = 0.50",
            ],
            [
                "1b, random bfloat16 weights, a small LM (135m) as drafter, 16 queries",
                "300.0 (acceptance set to 0.72)",
                "100.0 (3.00x)",
                "50.0 (6.00x)",
                "",
                "1,000 GB/s = 0.25",
            ],
        ],
        "A token's time beside training / with training paused": [
            ["0.2 queries/s", "9", "12.0 / 10.0 ms = 1.20", "12.0 / 10.0 ms = 1.20", ""],
            ["1 client", "9", "12.0 / 10.0 ms = 1.20", "12.0 / 10.0 ms = 1.20", "90.0 / 100.0 = 0.90"],
        ],
        "A token's time beside training on the same device / with training paused": [
            [f"1b, random bfloat16 weights, {what}", "900", "3.00 / 2.00 ms = 1.50", "8.00 / 4.00 ms = 2.00"]
            for what in (
                "one query at a time, training while the engine is less than 50% busy",
                "one query at a time, training always",
                "queries by chance, 30% busy, training while the engine is less than 50% busy",
                "queries by chance, 30% busy, training always",
            )
        ],
        "Hot swap": [["1 query", "10.0 ms", "5.0 ms", "0.50", "15.0 ms"]],
    }
    assert found["By a model's shape"][1][-1].startswith("Card, [2026-01-01]")


def test_the_readme_has_what_a_newcomer_asks_first(tmp_path: Path) -> None:
    write_one_of_each(tmp_path)
    write_decode(tmp_path, "decode_big_2026-02-01.json", 30.0, generate=10.0)
    write_decode(tmp_path, "decode-alone_big_2026-02-01.json", 31.0)
    first = rows_of(tmp_path, "README.md")
    assert list(first) == ["Decoding, tokens/s (osd / beside it)", "Learning from traffic", "Over HTTP"]
    [row] = first["Decoding, tokens/s (osd / beside it)"][1:]
    assert row[1] == "30.0 (acceptance length 1.50)"


def test_it_writes_between_the_markers_and_checks(tmp_path: Path) -> None:
    write_decode(tmp_path / "r", "decode_big_2026-02-01.json", 30.0, generate=10.0)
    readme, page = tmp_path / "README.md", tmp_path / "docs" / "figures.md"
    page.parent.mkdir()
    readme.write_text(_MARKED)
    page.write_text(_MARKED)
    options = ["--readme", str(readme), "--page", str(page), "--results", str(tmp_path / "r")]
    with pytest.raises(SystemExit, match=r"run `python -m benchmarks\.readme_table`"):
        main([*options, "--check"])
    assert readme.read_text() == page.read_text() == _MARKED
    main(options)
    main([*options, "--check"])
    written = readme.read_text()
    assert written.startswith("# osd\n\n<!-- figures:begin -->\n\n**Decoding") and written.endswith("\n\nProse.\n")
    assert "](r/decode_big_2026-02-01.json)" in written
    assert "](../r/decode_big_2026-02-01.json)" in page.read_text()
    page.write_text(_MARKED)
    with pytest.raises(SystemExit, match=r"figures\.md is not what"):
        main([*options, "--check"])
    main(options)
    assert readme.read_text() == written


def test_a_document_without_markers_is_left_alone(tmp_path: Path) -> None:
    readme, page = tmp_path / "README.md", tmp_path / "figures.md"
    readme.write_text(_MARKED)
    page.write_text("# osd\n")
    write_decode(tmp_path / "r", "decode_big_2026-02-01.json", 30.0, generate=10.0)
    with pytest.raises(SystemExit, match=r"figures\.md lacks its markers"):
        main(["--readme", str(readme), "--page", str(page), "--results", str(tmp_path / "r")])
    assert (readme.read_text(), page.read_text()) == (_MARKED, "# osd\n")


def test_our_documents_say_what_our_results_say() -> None:
    paths = {"readme": "README.md", "page": "docs/figures.md", "results": "benchmarks/results"}
    main(["--check", *(f"--{name}={_ROOT / path}" for name, path in paths.items())])
