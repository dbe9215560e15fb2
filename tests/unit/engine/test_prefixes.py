"""What an earlier query was read is not read again, and no answer changes for it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from osd.records.query import QueryStats, Request, SamplingParams
from tests.kit.engine_kit import Answers, ListRecorder, make_engine, make_target, run
from tests.unit.engine.cases import DRAFTERS, MakeDrafter, engine_for, greedy, plain

_SYSTEM: tuple[int, ...] = (2, 7, 1, 8, 2, 8, 1, 8, 2, 8)


def _asked(name: str, prompt_ids: tuple[int, ...], max_tokens: int = 6, **options: Any) -> Request:
    return Request(request_id=name, prompt_ids=prompt_ids, params=greedy(max_tokens), **options)


def _stats(answers: Answers, name: str) -> QueryStats:
    stats = answers[name].stats
    assert stats is not None
    return stats


def _reused(answers: Answers, name: str) -> int:
    return _stats(answers, name).reused_tokens


def test_a_conversation_is_read_once(model: Any, make_drafter: MakeDrafter) -> None:
    """Every turn's prompt is the last one's, its answer, and a question."""
    engine = engine_for(model, make_drafter)
    prompt, read = _SYSTEM, 0
    for turn in range(4):
        asked = _asked(f"turn {turn}", prompt)
        answers = run(engine, [asked])
        assert answers[asked.request_id].ids == plain(model, asked)
        assert _reused(answers, asked.request_id) == read
        # The last token of an answer was not read.
        read = len(prompt) + 5
        prompt = (*prompt, *answers[asked.request_id].ids, 3, 1 + turn)
    assert engine.counters.values["reused_tokens_total"] == sum(10 + 5 + 8 * turn for turn in range(3))


def test_the_status_says_how_many_tokens_rows_hold(model: Any, make_drafter: MakeDrafter) -> None:
    engine = engine_for(model, make_drafter, chunk_tokens=16)
    engine.submit(_asked("one", _SYSTEM))
    engine.step()
    status = engine.status()
    assert status.running_tokens >= len(_SYSTEM) and status.kept_tokens == 0
    run(engine)
    status = engine.status()
    # The last token of an answer was not read.
    assert (status.running_tokens, status.kept_tokens) == (0, len(_SYSTEM) + 5)


def test_conversations_side_by_side_are_kept_apart(model: Any, make_drafter: MakeDrafter) -> None:
    """Three of them take turns in four rows, which they are never in twice in the same order."""
    engine = engine_for(model, make_drafter)
    prompts: dict[str, tuple[int, ...]] = {name: (*_SYSTEM, number) for number, name in enumerate("abc")}
    for turn in range(3):
        lengths = {"a": 9, "b": 3, "c": 6}
        asked = [_asked(f"{name}{turn}", prompts[name], lengths[name]) for name in "cab" if (turn, name) != (1, "b")]
        answers = run(engine, asked)
        for request in asked:
            name = request.request_id[0]
            assert answers[request.request_id].ids == plain(model, request), request.request_id
            if turn:
                assert _reused(answers, request.request_id) == len(request.prompt_ids) - 2
            prompts[name] = (*request.prompt_ids, *answers[request.request_id].ids, 20 + turn)


def test_choices_of_one_prompt_read_it_once(model: Any, make_drafter: MakeDrafter) -> None:
    engine = engine_for(model, make_drafter)
    asked = [_asked(f"choice {number}", _SYSTEM, 12) for number in range(6)]
    answers = run(engine, asked)
    assert {tuple(answer.ids) for answer in answers.values()} == {tuple(plain(model, asked[0]))}
    assert [_reused(answers, request.request_id) for request in asked] == [0, 9, 9, 9, 9, 9]


def test_what_was_read_of_a_cancelled_query_is_used_and_no_more(model: Any) -> None:
    engine = engine_for(model, chunk_tokens=9)
    prompt = tuple(range(22))
    engine.submit(_asked("gone", prompt))
    engine.step()
    engine.cancel("gone")
    answers = run(engine, [asked := _asked("again", prompt)])
    assert answers["again"].ids == plain(model, asked)
    assert _reused(answers, "again") == 9


def test_an_answer_that_was_cut_off_leaves_what_was_committed(model: Any) -> None:
    """What was proposed beyond its end was read, too, and is not to be taken for the prompt's."""
    engine = engine_for(model, DRAFTERS["model, the target's own"], fixed_length=4)
    first = _asked("first", _SYSTEM, 3)
    ids = run(engine, [first])["first"].ids
    asked = _asked("next", (*_SYSTEM, *ids, 5, 5, 5, 5))
    answers = run(engine, [asked])
    assert answers["next"].ids == plain(model, asked)
    assert _reused(answers, "next") == len(_SYSTEM) + 2


def test_after_a_broken_step_everything_is_read_anew(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_for(model)
    run(engine, [_asked("before", _SYSTEM)])
    engine.submit(_asked("broken", (*_SYSTEM, 4)))
    with monkeypatch.context() as broken:
        broken.setattr(engine.target.lm, "forward", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    engine.fail_all("it broke")
    answers = run(engine, [asked := _asked("after", (*_SYSTEM, 4))])
    assert answers["after"].ids == plain(model, asked)
    assert _reused(answers, "after") == 0


def test_a_resumed_query_begins_with_what_is_there(model: Any) -> None:
    engine = engine_for(model)
    whole = plain(model, asked := _asked("whole", _SYSTEM, 12))
    run(engine, [replace(asked, params=greedy(4))])
    answers = run(engine, [replace(asked, request_id="resumed", resume_ids=tuple(whole[:7]))])
    assert answers["resumed"].ids == whole[7:]
    assert _reused(answers, "resumed") == len(_SYSTEM)  # with three tokens of the answer


def test_it_can_be_turned_off(model: Any) -> None:
    engine = engine_for(model, prefix_caching=False)
    answers = run(engine, [_asked("a", _SYSTEM)])
    answers = run(engine, [asked := _asked("b", (*_SYSTEM, 1))], answers)
    assert answers["b"].ids == plain(model, asked)
    assert _reused(answers, "b") == 0


@pytest.mark.parametrize("name", ["none", "model, good", "feature, random"])
def test_nothing_else_differs(model: Any, name: str) -> None:
    """Sampled tokens, their log-probabilities to the last bit, and what is recorded to learn from."""

    def life(*, prefix_caching: bool) -> tuple[Answers, ListRecorder]:
        target, recorder = make_target(copy.deepcopy(model)), ListRecorder()
        drafter = DRAFTERS[name](model, target)
        engine = make_engine(target, drafter, prefix_caching=prefix_caching, recorder=recorder)
        answers = Answers()
        for turn in range(3):
            params = SamplingParams(temperature=0.8, top_p=0.9, seed=turn, max_tokens=9, logprobs=3)
            prompts = [_SYSTEM[: 8 + turn], (*_SYSTEM, turn, 4), (*_SYSTEM, *range(5 * turn))]
            asked = [Request(request_id=f"{turn} {n}", prompt_ids=one, params=params) for n, one in enumerate(prompts)]
            run(engine, asked, answers)
        return answers, recorder

    (with_it, recorded), (without, expected) = life(prefix_caching=True), life(prefix_caching=False)
    assert sum(_reused(with_it, name) for name in with_it) > 0
    assert sum(_reused(without, name) for name in without) == 0
    for name, answer in with_it.items():
        other = without[name]
        assert (answer.ids, answer.logprobs, answer.finish_reason) == (other.ids, other.logprobs, other.finish_reason)
        one, two = recorded.outcomes[name], expected.outcomes[name]
        assert (one.rounds, one.top_logprobs, one.hidden) == (two.rounds, two.top_logprobs, two.hidden)
