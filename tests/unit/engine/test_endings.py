"""How a query ends, and how it goes on elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from osd.records.asked.limits import ThinkingLimit
from osd.records.errors import PromptTooLongError, QueueFullError
from osd.records.query import Request, SamplingParams
from tests.kit.engine_kit import Answers, ListRecorder, make_engine, make_target, plain_greedy, run
from tests.unit.engine.cases import MakeDrafter, engine_for, greedy, plain, requests


def test_one_token(model: Any, make_drafter: MakeDrafter) -> None:
    answers = run(engine_for(model, make_drafter), requests([1, 1, 1]))
    for request in requests([1, 1, 1]):
        answer = answers[request.request_id]
        assert (answer.ids, answer.finish_reason) == (plain(model, request), "length")
        assert answer.stats is not None
        assert answer.stats.rounds == 0


def test_an_answer_ends_with_the_end_token(model: Any, make_drafter: MakeDrafter) -> None:
    expected = plain_greedy(model, (3, 1, 4), 30)
    end = expected[7]
    at = expected.index(end)
    engine = engine_for(model, make_drafter, eos_ids=[end])
    ended = Request(request_id="ended", prompt_ids=(3, 1, 4), params=greedy(30))
    ignored = Request(request_id="ignored", prompt_ids=(3, 1, 4), params=greedy(30, ignore_eos=True))
    answers = run(engine, [ended, ignored])
    assert answers["ended"].ids == expected[: at + 1]
    assert answers["ended"].finish_reason == "stop"
    assert answers["ignored"].ids == expected
    assert answers["ignored"].finish_reason == "length"


def test_a_stop_string_cuts_the_text(model: Any, make_drafter: MakeDrafter) -> None:
    text = "".join(chr(ord("a") + token) for token in plain_greedy(model, (3, 1, 4), 30))
    stop = text[6:9]
    cut = text.index(stop)
    never = stop[:2] + ("a" if stop[2] != "a" else "b")
    engine = engine_for(model, make_drafter)
    answers = run(
        engine,
        [
            Request(request_id="stop", prompt_ids=(3, 1, 4), params=greedy(30, stop=(stop, "zzz"))),
            Request(request_id="never", prompt_ids=(3, 1, 4), params=greedy(cut + 2, stop=(stop,))),
            Request(request_id="none", prompt_ids=(3, 1, 4), params=greedy(30, stop=(never + "~",))),
        ],
    )
    assert (answers["stop"].text, answers["stop"].finish_reason) == (text[:cut], "stop")
    assert answers["stop"].ids == [ord(char) - ord("a") for char in text[: cut + 3]]
    # What was held back as the possible beginning of a stop string comes out when there is nothing left to come.
    assert (answers["never"].text, answers["never"].finish_reason) == (text[: cut + 2], "length")
    assert (answers["none"].text, answers["none"].finish_reason) == (text, "length")
    for answer in answers.values():
        assert "".join(answer.pieces) == answer.text


def test_an_end_token_that_the_model_lacks_ends_nothing(model: Any) -> None:
    """Where a tokenizer has more tokens than the model: to forbid the end for a while must not fail all queries."""
    target = make_target(model, eos_ids=[3, 24])
    assert target.eos_ids == {3}
    query = Request(request_id="r", prompt_ids=(1, 2), params=replace(greedy(9), min_tokens=9))
    assert len(run(make_engine(target), [query])["r"].ids) == 9


def test_the_context_is_a_length_too(model: Any, make_drafter: MakeDrafter) -> None:
    engine = engine_for(model, make_drafter, context_tokens=24)
    asked = [
        Request(request_id="a", prompt_ids=tuple(range(19)), params=greedy(100)),
        Request(request_id="b", prompt_ids=tuple(range(23)), params=greedy(100)),
        Request(request_id="c", prompt_ids=(1, 2), params=greedy(100)),
    ]
    answers = run(engine, asked)
    for request in asked:
        answer = answers[request.request_id]
        assert answer.ids == plain_greedy(model, request.prompt_ids, 24 - len(request.prompt_ids))
        assert answer.finish_reason == "length"


FOREIGN: dict[str, Any] = {
    "logit_bias": ((24, 1.0),),
    "allowed_token_ids": (1, 24),
    "bad_words": ((1,), (2, 24)),
    "stop_token_ids": (24,),
    "logprob_token_ids": (-1,),
}
"""Sampling parameters with tokens that a target of 24 lacks."""


def test_what_cannot_be_taken_is_refused_with_the_reason(model: Any) -> None:
    engine = engine_for(model, context_tokens=24, num_slots=2, max_waiting=1)
    with pytest.raises(PromptTooLongError, match="24 tokens, the context holds 24"):
        engine.submit(Request(request_id="long", prompt_ids=tuple(range(24))))
    with pytest.raises(ValueError, match="prompt is empty"):
        engine.submit(Request(request_id="empty", prompt_ids=()))
    with pytest.raises(ValueError, match="between 0 and 23"):
        engine.submit(Request(request_id="foreign", prompt_ids=(24,)))
    for field, ids in FOREIGN.items():
        params = replace(greedy(9), **{field: ids})
        with pytest.raises(ValueError, match=f"{field} token ids must be between 0 and 23"):
            engine.submit(Request(request_id="foreign", prompt_ids=(1,), params=params))
    limit = ThinkingLimit(max_tokens=0, begin_ids=(1,), end_ids=(24,))
    with pytest.raises(ValueError, match="thinking token ids"):
        engine.submit(Request(request_id="foreign", prompt_ids=(1,), thinking=limit))
    with pytest.raises(ValueError, match="resume_ids token ids"):
        engine.submit(Request(request_id="foreign", prompt_ids=(1,), resume_ids=(24,)))
    taken = requests([3, 3, 3])
    for request in taken:
        engine.submit(request)
    with pytest.raises(ValueError, match="'r0' is in use"):
        engine.submit(taken[0])
    with pytest.raises(QueueFullError, match="3 queries wait"):
        engine.submit(Request(request_id="r9", prompt_ids=(1,)))
    answers = run(engine)
    assert [answers[request.request_id].ids for request in taken] == [plain(model, request) for request in taken]
    assert set(run(engine, [taken[0]])) == {"r0"}  # a finished query's id is free again


def test_a_cancelled_query_frees_its_row_at_once(model: Any, make_drafter: MakeDrafter) -> None:
    engine = engine_for(model, make_drafter, num_slots=3, chunk_tokens=8)
    asked = requests([40, 40, 30, 20, 10])
    answers = Answers()
    for request in asked:
        engine.submit(request)
    for _ in range(4):
        answers.add(engine.step())
    assert engine.status().running == 3
    for victim in ("r0", "r4", "unknown"):  # decoding in the first row; still waiting; never heard of
        answers.add(engine.cancel(victim))
    assert engine.status().running == 2
    answers.add(engine.cancel("r0"))
    run(engine, answers=answers)
    for request in asked:
        answer, expected = answers[request.request_id], plain(model, request)
        if request.request_id in ("r0", "r4"):
            assert answer.finish_reason == "cancelled"
            assert answer.ids == expected[: len(answer.ids)]
        else:
            assert (answer.ids, answer.finish_reason) == (expected, "length")
    assert engine.counters.values["queries_cancelled_total"] == 2
    assert engine.status().running == engine.status().waiting == 0


def test_cancelling_a_query_whose_prompt_is_half_read(model: Any, make_drafter: MakeDrafter) -> None:
    engine = engine_for(model, make_drafter, chunk_tokens=5)
    long = Request(request_id="long", prompt_ids=tuple(range(22)), params=greedy(5))
    engine.submit(long)
    answers = Answers()
    answers.add(engine.step())
    answers.add(engine.cancel("long"))
    run(engine, requests([9, 9]), answers)
    assert answers["long"].ids == []
    assert [answers[r.request_id].ids for r in requests([9, 9])] == [plain(model, r) for r in requests([9, 9])]


@pytest.mark.parametrize("sent", [1, 4, 11, 19])
def test_a_resumed_query_goes_on_exactly(model: Any, make_drafter: MakeDrafter, sent: int) -> None:
    request = Request(request_id="r", prompt_ids=(3, 1, 4), params=greedy(20))
    expected = plain(model, request)
    text = "".join(chr(ord("a") + token) for token in expected)
    resumed = Request(
        request_id="r",
        prompt_ids=request.prompt_ids,
        params=request.params,
        resume_ids=tuple(expected[:sent]),
        resume_chars=sent - 1,  # one character was decoded but not yet sent
    )
    engine = engine_for(model, make_drafter, recorder=(recorder := ListRecorder()), chunk_tokens=5)
    answer = run(engine, [resumed])["r"]
    assert answer.ids == expected[sent:]
    assert answer.text == text[sent - 1 :]
    assert answer.finish_reason == "length"
    assert answer.stats is not None
    assert answer.stats.output_tokens == 20
    assert not recorder.outcomes


def test_a_query_that_had_ended_before_it_was_resumed_ends_at_once(model: Any) -> None:
    expected = plain_greedy(model, (3, 1, 4), 20)
    end = expected[9]
    at = expected.index(end) + 1
    engine = engine_for(model, eos_ids=[end])

    def resume(request_id: str, ids: Sequence[int], params: SamplingParams, chars: int) -> Request:
        return Request(
            request_id=request_id, prompt_ids=(3, 1, 4), params=params, resume_ids=tuple(ids), resume_chars=chars
        )

    stop = "".join(chr(ord("a") + token) for token in expected[2:4])
    answers = run(
        engine,
        [
            resume("eos", expected[:at], greedy(20), at),
            resume("length", expected[:3], greedy(3), 2),
            resume("stop", expected[:4], greedy(20, stop=(stop,)), 1),
        ],
    )
    assert {name: (answer.ids, answer.finish_reason) for name, answer in answers.items()} == {
        "eos": ([], "stop"),
        "length": ([], "length"),
        "stop": ([], "stop"),
    }
    assert answers["length"].text == chr(ord("a") + expected[2])
    assert answers["stop"].text == chr(ord("a") + expected[1])
