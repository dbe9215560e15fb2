"""The decoding benchmark, end to end on a tiny model: its figures add up, and a missing peer does not end it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.contenders import Run
from benchmarks.decode import Total, theoretical_speedup
from tests.kit.saved_models import save_llama


def test_the_theoretical_speedup_is_of_measured_parts() -> None:
    plain = Total(
        {"a": [Run(decoded_tokens=100, decode_s=2.2, rounds=100, committed=100, row_rounds=100, verify_s=2.0)]}
    )
    half = Run(decoded_tokens=50, decode_s=0.65, rounds=20, committed=50, row_rounds=20, draft_s=0.1, verify_s=0.44)
    fast = Total({"a": [half], "b": [half]})
    # 2.5 tokens a round, which costs (5 + 22) / 20 plain passes.
    assert theoretical_speedup(plain, fast) == pytest.approx(2.5 / 1.35)
    assert plain.host_ms == pytest.approx(2.0)


@pytest.mark.slow
def test_it_compares_and_ends_with_one_json_line(tmp_path: Path) -> None:
    save_llama(tmp_path / "tiny")
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("the sea", "one two three", "hello")))
    command = [sys.executable, "-m", "benchmarks.decode", "--json", "--target", str(tmp_path / "tiny")]
    command += ["--state-dir", str(tmp_path / "state"), "--prompts", str(prompts), "--batches", "1,2"]
    command += ["--max-tokens", "12", "--threads", "1", "--contenders", "osd plain,osd untrained,generate,assisted"]
    command[-1] += ",prompt lookup,llama.cpp"
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["plain_vs_generate"] > 0 and report["untrained_vs_plain"] > 0
    assert report["speculative_vs_llama_cpp"] is None and "llama.cpp" in report["missing"]
    assert report["batches"]["2"]["tokens_per_s"].keys() == {"osd plain", "osd untrained", "generate"}
    assert "assisted at batch 2" in report["missing"]
    assert report["batches"]["1"]["tokens_per_s_by_source"]["osd plain"].keys() == {"p"}
