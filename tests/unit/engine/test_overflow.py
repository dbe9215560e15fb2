"""NaN and infinity stay with the query that made them, which ends with an error; on every back end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from osd.engine.engine import Engine
from osd.kernels.backend import Backend
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.records.drafter_id import DrafterId
from osd.records.events import Event
from osd.records.proposal import DraftBatch, Proposal
from osd.records.query import NOT_FINITE, Request, SamplingParams
from osd.records.rules import AcceptRule
from tests.kit.backends import TORCH, Undecoded, captured_by, fastest
from tests.kit.engine_kit import (
    VOCAB_TOKENS,
    Answer,
    Answers,
    ListRecorder,
    feature_drafter,
    make_engine,
    make_target,
    model_drafter,
    perturbed,
    run,
    tiny_llama,
)
from tests.kit.fx_capture import run_at_once
from tests.kit.poison import caches_of, num_not_finite, poison

_OVERFLOWS = 13
"""A token of the vocabulary that no answer below holds by itself."""

pytestmark = pytest.mark.timeout(900)  # the first test of a back end may compile it


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


MakeTarget = Callable[[], Target]


_BACK_ENDS: dict[str, tuple[Backend, torch.dtype]] = {
    "transformers": (Undecoded(), torch.float32),
    "torch": (TORCH, torch.float32),
    "captured": (captured_by(run_at_once), torch.float32),
    "compiled": (fastest(), torch.float32),
    "compiled bfloat16": (fastest(), torch.bfloat16),
}
"""What a GPU's kernels read is tested in `test_gpu_attention`: its interpreter is too slow for whole answers."""


@pytest.fixture(params=list(_BACK_ENDS))
def make_plain_target(request: pytest.FixtureRequest) -> MakeTarget:
    """A target of three rows over the back end; always of the same model."""
    backend, dtype = _BACK_ENDS[request.param]
    model = tiny_llama(0).to(dtype)
    return lambda: make_target(model, backend=backend, num_slots=3)


@pytest.fixture(params=["feature", "model"])
def drafter_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


MakeEngine = Callable[..., Engine]


@pytest.fixture
def make(make_plain_target: MakeTarget, drafter_kind: str) -> MakeEngine:
    """An engine over such a target."""

    def made(**options: Any) -> Engine:
        target = make_plain_target()
        if drafter_kind == "feature":
            return make_engine(target, feature_drafter(target), **options)
        model = perturbed(tiny_llama(0).to(target.lm.dtype), 0.02)
        return make_engine(target, model_drafter(model, target), **options)

    return made


def _asked(name: str, length: int, prompt: tuple[int, ...], **params: Any) -> Request:
    params = {"temperature": 0.0, "logprobs": 3, **params}
    return Request(request_id=name, prompt_ids=prompt, params=SamplingParams(max_tokens=length, **params))


def _requests(suffix: str = "") -> list[Request]:
    """Rows of very different lengths, so that the short ones' unread positions are within what a pass sees."""
    return [
        _asked(f"long{suffix}", 12, tuple(range(2, 11)) * 3),
        _asked(f"short{suffix}", 14, (3, 1)),
        _asked(f"sampled{suffix}", 14, (5, 8, 5), temperature=0.8, seed=3),
    ]


def _same(answer: Answer, clean: Answer) -> None:
    assert answer.finish_reason == clean.finish_reason == "length"
    assert answer.ids == clean.ids
    pairs = zip(answer.logprobs, clean.logprobs, strict=True)
    assert all(abs(one.logprob - other.logprob) < 1e-4 for one, other in pairs)


def _check(answers: Answers, expected: Answers) -> None:
    """A sampled query's draws differ: of a round that was read again, no proposal was tried."""
    for name in ("long", "short"):
        _same(answers[name], expected[name])
    assert len(answers["sampled"].ids) == 14


@pytest.mark.parametrize(("whose", "value"), [(0, np.inf), (1, np.nan)], ids=["target's", "drafter's"])
def test_what_an_earlier_query_left_harms_nobody(make: MakeEngine, whose: int, value: float) -> None:
    """In every position of every row: all of it is stale."""
    clean, spoilt = make(prefix_caching=False), make(prefix_caching=False)
    for engine in (clean, spoilt):
        run(engine, _requests(" before"))
    for row in range(3):
        poison(caches_of(spoilt)[whose], value, row)
    expected, answers = run(clean, _requests()), run(spoilt, _requests())
    _check(answers, expected)
    if whose == 1:  # a drafter that met NaN would propose what nobody keeps
        _same(answers["sampled"], expected["sampled"])
        assert spoilt.counters.values["accepted_total"] == clean.counters.values["accepted_total"]


def test_what_lies_beyond_a_rows_length_harms_nobody(make: MakeEngine) -> None:
    """As a refused proposal, or padding, may leave it; in mid-stream."""
    clean, spoilt = make(), make()
    expected, answers = run(clean, _requests()), Answers()
    for request in _requests():
        spoilt.submit(request)
    while spoilt.has_work:
        answers.add(spoilt.step())
        for sequence in spoilt.scheduler.decoding:
            poison(caches_of(spoilt)[0], -np.inf, sequence.row, sequence.num_tokens)
    _check(answers, expected)


def test_a_spoilt_drafter_costs_acceptance_only(make: MakeEngine) -> None:
    """Of its rows all that queries use, after every step; the next queries' acceptance is as ever."""
    events: list[Event] = []
    clean, spoilt = make(), make(on_event=events.append)
    expected, answers = run(clean, _requests()), Answers()
    accepted = clean.counters.values["accepted_total"]
    for request in _requests():
        spoilt.submit(request)
    while spoilt.has_work:
        answers.add(spoilt.step())
        for row in range(3):
            poison(caches_of(spoilt)[1], np.nan, row)
    _check(answers, expected)
    assert not events
    before = spoilt.counters.values["accepted_total"]
    run(clean, _requests(" again"))
    run(spoilt, _requests(" again"))
    assert spoilt.counters.values["accepted_total"] - before == clean.counters.values["accepted_total"] - accepted


def test_a_model_drafters_row_is_cleared_as_far_as_it_was_written() -> None:
    """Its proposals and padding, too, which lie beyond what it knows to be right."""
    target = make_target(tiny_llama(0), backend=TORCH, num_slots=3)
    drafter = model_drafter(tiny_llama(1), target)
    written, cleared = [0, 0, 0], [0, 0, 0]
    passes = drafter._lm.decoder
    assert passes is not None
    read, clear_row = passes.read, drafter._lm.clear_row

    def noted_read(first_row: int, ids_BQ: Tensor, starts: list[int], **options: Any) -> Any:
        for row, start in enumerate(starts, first_row):
            written[row] = max(written[row], start + ids_BQ.shape[1])
        return read(first_row, ids_BQ, starts, **options)

    def noted_clear(row: int, start: int, held: int) -> None:
        cleared[row] = held
        clear_row(row, start, held)

    with patch.object(passes, "read", noted_read), patch.object(drafter._lm, "clear_row", noted_clear):
        run(make_engine(target, drafter), _requests())
        assert min(written) > 0
        for row in range(3):
            known = drafter._end[row]
            drafter.reset_row(row)
            assert cleared[row] >= written[row], f"{known} positions were known"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_spoilt_query_ends_alone(make: MakeEngine, value: float) -> None:
    events: list[Event] = []
    recorder = ListRecorder()
    expected = run(make(), [*_requests(), *_requests(" again")])
    engine = make(on_event=events.append, recorder=recorder)
    answers = Answers()
    for request in _requests():
        engine.submit(request)
    while engine.scheduler.prefilling or engine.scheduler.waiting or not engine.scheduler.decoding:
        answers.add(engine.step())
    answers.add(engine.step())
    [spoilt] = [one for one in engine.scheduler.decoding if one.request.request_id == "long"]
    poison(caches_of(engine)[0], value, spoilt.row, 0, spoilt.num_tokens - 1)
    run(engine, answers=answers)
    assert (answers["long"].finish_reason, answers["long"].error) == ("error", NOT_FINITE)
    assert answers["long"].ids == expected["long"].ids[: len(answers["long"].ids)]
    for name in ("short", "sampled"):
        _same(answers[name], expected[name])
    assert [event.kind for event in events] == ["error"]
    assert events[0].message.startswith("query long failed at token ")
    assert engine.counters.values["queries_failed_total"] == 1
    assert set(recorder.outcomes) == {"short", "sampled"}
    assert [num_not_finite(caches_of(engine)[0], row) for row in range(3)] == [0, 0, 0]
    again = run(engine, _requests(" again"))
    _same(again["long again"], expected["long again"])
    _same(again["short again"], expected["short again"])


def _spoil(engine: Engine) -> None:
    """Only now, as the check at the start would refuse such a model."""
    with torch.no_grad():
        engine.target.lm.model.get_input_embeddings().weight[_OVERFLOWS] = torch.inf


@pytest.mark.parametrize("position", ["first", "next chunk"])
def test_a_prompt_that_overflows_gets_an_error(make: MakeEngine, position: str) -> None:
    prompt = {"first": (_OVERFLOWS, 3, 1), "next chunk": (*range(2, 8), _OVERFLOWS)}
    events: list[Event] = []
    [first, second, _] = _requests()
    expected = run(make(), [first, second])
    assert not any(_OVERFLOWS in answer.ids for answer in expected.values())
    engine = make(on_event=events.append, chunk_tokens=5)
    _spoil(engine)
    answers = run(engine, [first, _asked("bad", 9, prompt[position]), second])
    assert (answers["bad"].finish_reason, answers["bad"].error, answers["bad"].ids) == ("error", NOT_FINITE, [])
    assert len(events) == 1
    for name, answer in expected.items():
        _same(answers[name], answer)


@pytest.mark.parametrize("chunk_tokens", [3, 16], ids=["an earlier chunk", "the only chunk"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_log_probabilities_of_a_prompt_that_are_no_numbers_are_an_error(
    make_plain_target: MakeTarget, value: float, chunk_tokens: int
) -> None:
    """Of one position only; the answer would begin after another, which is sound."""
    target, events = make_plain_target(), list[Event]()
    engine, read = make_engine(target, on_event=events.append, chunk_tokens=chunk_tokens), target.read

    def spoilt(row: int, ids_BQ: Any, starts: list[int], **options: Any) -> Any:
        output = read(row, ids_BQ, starts, **options)
        if starts != [0] or options["logits"] != "all":
            return output
        assert output.logits is not None
        output.logits.tensor_BQV[0, 1] = value
        return output._replace(logits=target.backend.logits(output.logits.tensor_BQV))

    with patch.object(target, "read", spoilt):
        answers = run(engine, [_asked("bad", 9, (3, 1, 4, 1, 5), prompt_logprobs=2), *_requests()])
    assert (answers["bad"].finish_reason, answers["bad"].error, answers["bad"].ids) == ("error", NOT_FINITE, [])
    assert [event.kind for event in events] == ["error"]
    assert {answers[name].finish_reason for name in ("long", "short", "sampled")} == {"length"}


class _Insists:
    """A drafter that proposes one token always, with a distribution that is none where it is asked for one."""

    id = DrafterId("insists", 1)
    needs_hidden = False

    def propose(self, batch: DraftBatch) -> Proposal:
        num_rows, num_steps = len(batch.lengths), max(batch.lengths)
        ids_BK = torch.full((num_rows, num_steps), _OVERFLOWS)
        probs_BKV = torch.full((num_rows, num_steps, VOCAB_TOKENS), torch.nan)
        return Proposal(ids_BK, batch.lengths, probs_BKV, self.id)

    def reset_row(self, row: int) -> None:
        pass

    def swap_rows(self, row: int, other: int) -> None:
        pass

    def adopt(self, other: Drafter) -> None:
        pass


@pytest.mark.parametrize("rule", ["token", "block"])
def test_a_proposed_token_that_overflows_costs_acceptance_only(make_plain_target: MakeTarget, rule: AcceptRule) -> None:
    [first, second, _] = _requests()
    sampled = _asked("sampled", 14, (5, 8, 5), temperature=1.0, top_k=2, seed=0)
    expected = run(make_engine(make_plain_target()), [first, second])
    target = make_plain_target()
    events: list[Event] = []
    engine = make_engine(target, _Insists(), on_event=events.append, accept_rule=rule)
    _spoil(engine)
    answers = run(engine, [first, second, sampled])
    for name, answer in expected.items():
        _same(answers[name], answer)
    assert answers["sampled"].finish_reason == "length" and not events
    assert engine.counters.values["proposed_total"] > 0 == engine.counters.values["accepted_total"]


@pytest.mark.parametrize(
    ("params", "value"),
    [
        ({}, np.nan),
        ({"logprobs": None}, -np.inf),
        ({"presence_penalty": 0.5}, np.inf),
        ({"temperature": 0.9, "seed": 1}, np.nan),
        ({"temperature": 0.9, "seed": 1, "top_p": 0.5, "top_k": 3}, -np.inf),
    ],
)
def test_logits_that_are_no_numbers_are_no_answer(
    make_plain_target: MakeTarget, params: dict[str, Any], value: float
) -> None:
    """Whatever the query asks for: no token of an answer comes from them."""
    target = make_plain_target()
    engine, read, calls = make_engine(target), target.read, iter(range(100))

    def spoilt(*args: Any, **options: Any) -> Any:
        output = read(*args, **options)
        if next(calls) > 2 and output.logits is not None:
            return output._replace(logits=target.backend.logits(output.logits.tensor_BQV.fill_(value)))
        return output

    with patch.object(target, "read", spoilt):
        answers = run(engine, [_asked("r", 9, (3, 1, 4), **params)])
    assert (answers["r"].finish_reason, answers["r"].error) == ("error", NOT_FINITE)
    assert len(answers["r"].ids) == 3
