"""What recording costs a round: a figure for every number of accepted tokens."""

from __future__ import annotations

import json

import pytest

from benchmarks.record_cost import main


def test_it_times_both_kinds_of_ranking(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--vocab-tokens", "256", "--rounds", "3", "--rows", "2", "--length", "3", "--top-k", "4"])
    report = json.loads(capsys.readouterr().out)
    assert [row["accepted"] for row in report["by_accepted"]] == [0, 1, 2]
    assert all(row["committed_us"] > 0 and row["with_rejected_us"] > 0 for row in report["by_accepted"])
