"""Prompts that the real target makes up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import self_prompts
from benchmarks.prompts import small_talk_prompts
from osd.config.paths import models_dir
from osd.config.settings import default_state_dir
from osd.text.prompt_file import read_prompts


@pytest.fixture
def num_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_they_go_on_from_first_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_threads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    models_dir(state_dir).symlink_to(models_dir(default_state_dir()))
    monkeypatch.setenv("OSD_STATE_DIR", str(state_dir))
    out = tmp_path / "prompts.jsonl"
    self_prompts.main(out, num_prompts=20, threads=1)
    prompts = read_prompts(out)
    assert 5 <= len(prompts) <= 20
    assert f"{len(prompts)} prompts, {20 - len(prompts)} left out" in capsys.readouterr().out
    evaluated = [messages[-1]["content"] for messages in small_talk_prompts()]
    for [message] in prompts:
        text = message["content"]
        assert message["role"] == "user" and 8 <= len(text) <= 300 and "<|" not in text
        assert text not in evaluated
    assert sum(message["content"].startswith("What") for [message] in prompts) >= 2
