"""The adaptation experiments on a tiny target, for real: recorded, replayed, held against a live run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.adaptation.__main__ import main
from tests.kit.saved_models import save_llama

_QUESTIONS = ["the sea is", "list three fruits", "def add(a, b):", "once upon a time", "12 + 30 =", "who are you"]
_NUM_PROMPTS = 12


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The flags of every call."""
    folder = tmp_path_factory.mktemp("adaptation")
    for domain in ("one", "two"):
        lines = [
            {"domain": domain, "messages": [{"role": "user", "content": f"{question} {domain} {number}"}]}
            for number in range(_NUM_PROMPTS // len(_QUESTIONS))
            for question in _QUESTIONS
        ]
        (folder / f"{domain}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    trainer = "min_records = 2\nheld_out_share = 0.3\ngate_every_steps = 5\nlearning_rate = 3e-3\nwarmup_steps = 2"
    limits = "[target]\nmax_context_tokens = 128\nthreads = 1\n[engine]\nmax_slots = 4\n"
    (folder / "osd.toml").write_text(f"{limits}[trainer]\nbatch_tokens = 128\n{trainer}\n")
    return [
        *(str(folder / f"{domain}.jsonl") for domain in ("one", "two")),
        *("--target", str(save_llama(folder / "tiny")), "--dtype", "float32", "--draft-vocab-tokens", "128"),
        *("--config", str(folder / "osd.toml"), "--state-dir", str(folder / "state")),
        *("--max-tokens", "24", "--recorded", str(_NUM_PROMPTS)),
    ]


def called(name: str, command: list[str], capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    main([name, *command, *more])
    report: dict[str, Any] = json.loads(capsys.readouterr().out.rstrip("\n").split("\n")[-1])
    return report


def test_a_live_run_has_the_rounds_that_were_replayed(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    report = called("check", command, capsys, "--queries", "6")
    assert report["queries"] == 12
    assert report["equal_answers"] == report["equal_rounds"] == 12
    assert report["replayed_rounds"] == report["live_rounds"] > 12


def test_arms_are_compared_on_the_same_answers(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arms = "frozen,online,suffix,online+suffix,online by domain,offline"
    flags = ["--queries", "8", "--window", "4", "--arms", arms, "--passes", "1", "--out", str(tmp_path)]
    report = called("run", command, capsys, *flags)
    assert list(report["arms"]) == arms.split(",")
    frozen, online = report["arms"]["frozen"], report["arms"]["online"]
    assert frozen["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert frozen["spent_a_run"]["trained_tokens"] == 0 < online["spent_a_run"]["trained_tokens"]
    assert [one["domain"] for one in frozen["blocks"]] == ["one", "two"]
    assert [one["queries"] for one in frozen["windows"]] == [[1, 4], [5, 8], [9, 12], [13, 16]]
    assert report["arms"]["suffix"]["length"] > 1.0, "random models repeat themselves"
    [path] = tmp_path.glob("*.json")
    assert json.loads(path.read_text()) == report
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert called("run", command, capsys, *flags) == report, "from the runs that were kept"


def test_a_run_is_the_same_when_it_is_done_again(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--order", "mixed", "--queries", "6", "--window", "4", "--arms", "frozen,online"]
    first = called("run", command, capsys, *flags)
    state = Path(command[command.index("--state-dir") + 1])
    for path in (state / "adaptation" / "runs").glob("online-*.json"):
        path.unlink()
    second = called("run", command, capsys, *flags)
    for report in (first, second):
        del report["arms"]["online"]["spent_a_run"]["core_minutes"]
    assert first == second


def test_sampled_answers_are_scored_in_expectation(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--temperature", "1", "--queries", "6", "--window", "4", "--arms", "frozen,online,suffix"]
    report = called("run", command, capsys, *flags)
    assert report["temperature"] == 1.0
    for arm in report["arms"].values():
        assert 1.0 < arm["length"] < 5.0 and 0.0 < arm["alpha"] < 1.0


def test_a_live_run_has_the_score_of_a_replay(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The same queries in the same order; an arm that has published nothing yet scores as the frozen one."""
    flags = ["--queries", "4", "--window", "4"]
    report = called("live", command, capsys, *flags, "--arms", "frozen,online+rejected")
    replayed = called("run", command, capsys, *flags, "--arms", "frozen")
    for name in ("length", "first", "alpha", "windows"):
        assert report["arms"]["frozen"][name] == replayed["arms"]["frozen"][name]
    first, *_ = report["arms"]["online+rejected"]["windows"]
    assert first["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert (
        report["arms"]["frozen"]["spent_a_run"]["steps"]
        == 0
        < report["arms"]["online+rejected"]["spent_a_run"]["steps"]
    )


@pytest.mark.slow
def test_live_arms_draft_with_what_was_published(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--queries", "12", "--window", "4", "--steps-per-query", "8"]
    report = called("live", command, capsys, *flags, "--arms", "frozen,online,online+rejected")
    _, online, rejected = report["arms"].values()
    assert online["spent_a_run"]["steps"] == rejected["spent_a_run"]["steps"] > 0
    assert min(arm["spent_a_run"]["versions"] for arm in (online, rejected)) > 0
    assert min(arm["gain"]["mean"] for arm in (online, rejected)) > 0.02
    assert [one["gain"]["mean"] for one in online["windows"][:2]] == [0.0, 0.0], "nothing was published by then"
    assert online["length"] != rejected["length"], "they learnt from other data"
