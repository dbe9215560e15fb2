"""What a step does: it reads prompts, or decodes."""

from __future__ import annotations

from typing import Any

from tests.kit.engine_kit import Answers, run
from tests.unit.engine.cases import engine_for, plain, requests


def test_a_first_token_does_not_wait_for_a_round(model: Any) -> None:
    engine = engine_for(model)
    engine.submit(asked := requests([8])[0])
    [first] = engine.step()
    assert list(first.token_ids) == plain(model, asked)[:1]
    assert engine.counters.values["rounds_total"] == 0
    [second] = engine.step()
    assert len(second.token_ids) >= 1
    assert engine.counters.values["rounds_total"] == 1


def test_rounds_do_not_wait_for_prompts_without_end(model: Any) -> None:
    """A query decodes while short ones come all the time."""
    engine = engine_for(model, num_slots=2, chunk_tokens=4, fixed_length=0)
    asked = requests([20, *[1] * 60])
    for request in asked:
        engine.submit(request)
    answers = Answers()
    while "r0" not in answers or answers["r0"].finish_reason is None:
        before = engine.counters.values["rounds_total"]
        answers.add(engine.step())
        answers.add(engine.step())
        assert engine.counters.values["rounds_total"] > before
    assert 0 < len(answers) < len(asked)
    run(engine, answers=answers)
    assert [answers[request.request_id].ids for request in asked] == [plain(model, request) for request in asked]
