"""Everyday prompts: enough of each kind, without what an evaluation asks."""

from __future__ import annotations

import re

import pytest

from benchmarks.adaptation.streams import read_stream
from benchmarks.everyday import training
from benchmarks.everyday.held_out import HELD_OUT
from benchmarks.everyday.training import training_prompts


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def test_the_stream_of_everyday_questions_names_their_kinds() -> None:
    stream = read_stream("everyday", 1000)
    assert [prompt.domain for prompt in stream[:7]] == ["writing"] * 6 + ["role play"]
    assert len(stream) == 72 == len({prompt.messages[0]["content"] for prompt in stream})


def test_training_prompts_are_distinct_and_unlike_those_that_are_evaluated() -> None:
    prompts = [messages[-1]["content"] for messages in training_prompts(40)]
    assert len(prompts) == len(set(prompts)) >= 0.9 * 40 * len(HELD_OUT)
    asked = [_words(text) for texts in HELD_OUT.values() for text in texts]
    assert not any(len(_words(text) & one) >= 0.8 * len(one) for text in prompts for one in asked)


def test_a_training_prompt_that_resembles_an_evaluated_one_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_TEMPLATES", {"science": ("Why is the sky so blue, {person}?", "What is {topic}?")})
    prompts = [messages[-1]["content"] for messages in training_prompts(20)]
    assert prompts
    assert all(text.startswith("What is") for text in prompts)


def test_prompts_are_the_same_for_the_same_seed() -> None:
    assert training_prompts(5) == training_prompts(5) != training_prompts(5, seed=1)
