"""What drafters are distilled on is apart from what benchmarks evaluate with."""

from __future__ import annotations

import pytest

from benchmarks.prompts import EvaluationPrompts, code_prompts, small_talk_prompts, tool_call_prompts
from benchmarks.training_prompts import training_prompts


def test_case_and_punctuation_do_not_make_an_evaluation_prompt_another() -> None:
    evaluated = EvaluationPrompts()
    assert "What is AI?" in evaluated and " what is ai" in evaluated
    assert "What is a bee?" not in evaluated


@pytest.mark.slow
def test_no_training_prompt_is_evaluated() -> None:
    trained = [messages[-1]["content"] for messages in training_prompts()]
    assert len(trained) > 5000
    evaluated = EvaluationPrompts()
    assert not [text for text in trained if text in evaluated]
    for prompts in (code_prompts(), tool_call_prompts(), small_talk_prompts()):
        assert not {messages[-1]["content"] for messages in prompts} & set(trained)
