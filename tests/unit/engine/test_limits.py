"""What limits and describes an answer beside its length, with speculation and without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from osd.records.asked.limits import RepetitionLimit, ThinkingLimit
from osd.records.query import Request
from tests.kit.engine_kit import plain_logits, run
from tests.unit.engine.cases import engine_for, greedy, plain

_PROMPT = (3, 1, 4)


def _asked(name: str, max_tokens: int = 20, *, length: int = 3, prompt: Any = _PROMPT, **fields: Any) -> Request:
    params = {key: fields.pop(key) for key in list(fields) if key not in ("thinking", "cache_salt")}
    return Request(
        request_id=name,
        prompt_ids=prompt,
        params=greedy(max_tokens, **params),
        speculation_length=length,
        **fields,
    )


@pytest.mark.parametrize("length", [0, 3])
def test_an_answer_that_repeats_itself_ends(model: Any, length: int) -> None:
    limit = RepetitionLimit(min_tokens=1, max_tokens=4, num_repeats=5)
    asked = _asked("r", length=length, logit_bias=((7, 100.0),), repetition_limit=limit)
    answer = run(engine_for(model), [asked])["r"]
    assert answer.ids == [7] * 5 and answer.finish_reason == "length"
    # Elsewhere it goes on, and ends, as if it had never been interrupted.
    resumed = replace(asked, request_id="resumed", resume_ids=(7, 7, 7))
    ended = replace(asked, request_id="ended", resume_ids=(7,) * 5)
    answers = run(engine_for(model), [resumed, ended])
    assert answers["resumed"].ids == [7, 7] and answers["ended"].ids == []
    assert answers["ended"].finish_reason == "length"


@pytest.mark.parametrize("length", [0, 3])
def test_reasoning_is_ended_and_the_answer_goes_on(model: Any, length: int) -> None:
    thinking = ThinkingLimit(max_tokens=4, begin_ids=(20,), end_ids=(21, 22), is_open=True)
    asked = _asked("t", 12, length=length, thinking=thinking, logit_bias=((21, -100.0), (22, -100.0)))
    ids = run(engine_for(model), [asked])["t"].ids
    free = _asked("f", 12, length=length, logit_bias=((21, -100.0), (22, -100.0)))
    assert ids[:4] == run(engine_for(model), [free])["f"].ids[:4]
    assert ids[4:6] == [21, 22] and not {21, 22} & set(ids[:4] + ids[6:]) and len(ids) == 12


@pytest.mark.parametrize("length", [0, 3])
def test_named_tokens_are_told_of_at_each_position(model: Any, length: int) -> None:
    named = (9, 2, 17)
    asked = [_asked("n", 8, length=length, logprobs=2, logprob_token_ids=named), _asked("m", 8, logprobs=2)]
    answers = run(engine_for(model), asked)
    ids = answers["n"].ids
    assert ids == plain(model, asked[0])
    logits_NV = plain_logits(model, (*_PROMPT, *ids))[len(_PROMPT) - 1 : -1].log_softmax(dim=1)
    for told, logprobs_V in zip(answers["n"].logprobs, logits_NV, strict=True):
        best_first = sorted(named, key=lambda token: -float(logprobs_V[token]))
        assert [token for token, _ in told.top] == best_first
        torch.testing.assert_close(
            torch.tensor([value for _, value in told.top]), logprobs_V[best_first], atol=1e-4, rtol=1e-4
        )
    assert all(len(one.top) == 2 for one in answers["m"].logprobs)


def test_prompts_are_reused_from_queries_of_the_same_salt_only(model: Any) -> None:
    engine, prompt, reused = engine_for(model), (2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5), []
    for number, salt in enumerate(["", "a", "a", "b", "", "b"]):
        asked = _asked(str(number), 4, prompt=prompt, cache_salt=salt)
        answer = run(engine, [asked])[str(number)]
        assert answer.ids == plain(model, asked) and answer.stats is not None
        reused.append(answer.stats.reused_tokens)
    assert reused == [0, 0, 11, 0, 11, 11]
