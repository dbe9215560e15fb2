"""Drafters that misbehave, a loop whose step breaks, odd sizes."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from osd.engine.engine import Engine
from osd.engine.loop import EngineLoop
from osd.kernels.reference.drafting.chain_choice import ChainChoice, Draws
from osd.records.errors import EngineUnavailableError, WeightsRefusedError
from osd.records.events import Event
from osd.records.proposal import DraftBatch, Proposal
from osd.records.query import Request, SamplingParams, TokenDelta
from osd.verify.shaping import uniforms
from tests.kit.engine_kit import (
    VOCAB_TOKENS,
    Answers,
    ListRecorder,
    feature_drafter,
    feature_state,
    make_engine,
    make_target,
    manifest_of,
    model_drafter,
    plain_greedy,
    run,
    swap,
    tiny_llama,
)
from tests.kit.waiting import wait_for
from tests.unit.engine.cases import DRAFTERS, MakeDrafter, engine_for, greedy, plain, requests, sampled


@pytest.mark.parametrize(
    ("ids", "reason"),
    [([0, 1, 2, 24], "outside"), ([0, 1, 2, -1], "outside"), ([0, 1, 2, 2], "twice")],
)
def test_a_vocabulary_that_the_target_lacks_is_refused(model: Any, ids: list[int], reason: str) -> None:
    """Ids beyond the target's would crash a step; an id given twice would have a wrong draft probability."""
    target = make_target(copy.deepcopy(model))
    drafter = feature_drafter(target, vocab_tokens=4)
    before = {name: tensor.clone() for name, tensor in drafter.state().items()}
    with pytest.raises(WeightsRefusedError, match=reason):
        drafter.prepare({**feature_state(drafter.config, 1), "vocab_ids_R": torch.tensor(ids)}, 2)
    assert drafter.id.version == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in drafter.state().items())


def test_a_drafter_that_raises_ends_no_query(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain decoding until another version is swapped in; the operator is told once."""
    target = make_target(copy.deepcopy(model))
    drafter = model_drafter(copy.deepcopy(model), target)
    events: list[Event] = []
    engine = make_engine(target, drafter, on_event=events.append)
    sound, calls = drafter.propose, iter(range(1000))

    def propose(batch: DraftBatch) -> Proposal:
        if next(calls) == 2:
            raise RuntimeError("a kernel is missing")
        return sound(batch)

    monkeypatch.setattr(drafter, "propose", propose)
    asked = requests([30, 20, 25, 30])
    answers = Answers()
    for request in asked:
        engine.submit(request)
    for _ in range(8):
        answers.add(engine.step())
    assert [event.kind for event in events] == ["error"]
    assert "drafter version 1 broke, decoding plainly: a kernel is missing" in events[0].message
    assert engine.counters.values["plain_rounds_total"] > 0
    proposed = engine.counters.values["proposed_total"]
    swap(engine, manifest_of(2), drafter.state())
    run(engine, answers=answers)
    assert engine.counters.values["proposed_total"] > proposed
    assert [answers[request.request_id].ids for request in asked] == [plain(model, request) for request in asked]


def test_a_model_drafter_cannot_say_what_the_target_cannot(model: Any) -> None:
    """A drafter model with a padded vocabulary proposes the target's ids only."""
    target = make_target(copy.deepcopy(model))
    wide = tiny_llama(4, vocab_tokens=VOCAB_TOKENS + 8)
    wide.lm_head.weight[VOCAB_TOKENS:] *= 50.0  # it would love to
    engine = make_engine(target, model_drafter(wide, target))
    asked = requests([15, 15])
    answers = run(engine, [*asked, sampled("s", 1, length=4)])
    assert [answers[r.request_id].ids for r in asked] == [plain(model, r) for r in asked]
    assert max(answers["s"].ids) < VOCAB_TOKENS


def test_a_chain_draws_for_those_who_asked_only() -> None:
    generators = [Random(1) for _ in range(2)]
    batch = DraftBatch(
        tokens_SL=torch.zeros(2, 4, dtype=torch.long),
        hidden_SLH=torch.zeros(2, 4, 2),
        num_tokens=[2, 2],
        lengths=[1, 3],
        params=[SamplingParams(), SamplingParams(top_k=2)],
        generators=generators,
    )
    choice = ChainChoice(3, Draws.of(batch, 3), 6, torch.tensor([1, 3, 5]))
    for _ in range(choice.num_steps):
        choice.take(torch.tensor([[0.0, 1.0, 2.0]] * 2))
    assert choice.draft_probs_BKV is not None
    assert choice.draft_probs_BKV[1].sum(dim=-1).tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert not choice.draft_probs_BKV[:, :, [0, 2, 4]].any()
    assert (choice.draft_probs_BKV[1] > 0).sum(dim=-1).tolist() == [2, 2, 2]  # the query's own top-k
    used = [Random(1) for _ in range(2)]
    uniforms(used[0], 1, 1)
    uniforms(used[1], 3, 3)
    assert [one.getstate() for one in generators] == [one.getstate() for one in used]


class Inbox:
    """Collects what the loop delivers, and lets a test wait for it."""

    def __init__(self) -> None:
        self.answers = Answers()
        self._changed = threading.Condition()

    def deliver(self, deltas: list[TokenDelta]) -> None:
        with self._changed:
            self.answers.add(deltas)
            self._changed.notify_all()

    def wait_for(self, *request_ids: str) -> None:
        with self._changed:
            done = self._changed.wait_for(
                lambda: all(name in self.answers and self.answers[name].finish_reason for name in request_ids), 30
            )
        assert done, "the loop delivered no end"


def test_the_loop_answers_what_other_threads_submit(model: Any) -> None:
    inbox = Inbox()
    loop = EngineLoop(engine_for(model), inbox.deliver)
    loop.start()
    asked = requests([9, 4, 12])
    threads = [threading.Thread(target=loop.submit, args=(request,)) for request in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    inbox.wait_for("r0", "r1", "r2")
    with pytest.raises(ValueError, match="prompt is empty"):
        loop.submit(Request(request_id="empty", prompt_ids=()))
    loop.submit(Request(request_id="long", prompt_ids=(1,), params=greedy(60)))
    loop.cancel("long")
    inbox.wait_for("long")
    assert loop.status().running == 0
    loop.stop()
    for request in asked:
        assert inbox.answers[request.request_id].ids == plain(model, request)
    with pytest.raises(EngineUnavailableError):
        loop.submit(asked[0])


def test_a_step_that_raises_fails_its_queries_and_the_loop_lives(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox()
    engine = engine_for(model, recorder=(recorder := ListRecorder()))
    loop = EngineLoop(engine, inbox.deliver)
    sound = engine.target.read
    calls = iter(range(1000))

    def read(first_row: int, ids_BQ: Tensor, starts: Sequence[int], **options: Any) -> Any:
        if next(calls) == 5:
            raise RuntimeError("a device went away, with secrets in the message")
        return sound(first_row, ids_BQ, starts, **options)

    monkeypatch.setattr(engine.target, "read", read)
    for request in requests([30, 30, 30]):
        engine.submit(request)
    loop.start()
    inbox.wait_for("r0", "r1", "r2")
    for request in requests([30, 30, 30]):
        answer = inbox.answers[request.request_id]
        assert (answer.finish_reason, answer.error) == ("error", "internal error: RuntimeError")
    later = Request(request_id="later", prompt_ids=(3, 1, 4), params=greedy(12))
    loop.submit(later)
    inbox.wait_for("later")
    loop.stop()
    assert inbox.answers["later"].ids == plain(model, later)
    assert set(recorder.outcomes) == {"later"}  # what a broken step left is nothing to learn from
    assert "a step failed" in caplog.text
    assert engine.counters.values["queries_failed_total"] == 3


def test_a_delivery_that_raises_does_not_end_the_loop(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    inbox, calls = Inbox(), iter(range(1000))

    def deliver(deltas: list[TokenDelta]) -> None:
        if next(calls) == 0:
            raise RuntimeError("nobody is there")
        inbox.deliver(deltas)

    loop = EngineLoop(engine_for(model), deliver)
    loop.start()
    [lost, later] = requests([6, 6])
    loop.submit(lost)
    loop.submit(later)
    inbox.wait_for(later.request_id)
    loop.stop()
    assert "were not delivered" in caplog.text


def test_whoever_waits_for_a_stopping_loop_is_told(model: Any) -> None:
    """A command that was queued before the loop was told to stop is not run after it."""
    loop = EngineLoop(engine_for(model), lambda deltas: None)
    busy, go_on, has_run = threading.Event(), threading.Event(), threading.Event()

    def hold(engine: Engine) -> None:
        busy.set()
        assert go_on.wait(30)

    def is_stopping() -> bool:
        try:
            loop.call(lambda engine: None)
        except EngineUnavailableError:
            return True
        return False

    loop.start()
    held = loop.call(hold)
    assert busy.wait(30)
    late = loop.call(lambda engine: has_run.set())
    stopper = threading.Thread(target=loop.stop)
    stopper.start()
    wait_for(is_stopping, "the loop to refuse what is new")
    go_on.set()
    stopper.join(30)
    assert not stopper.is_alive()
    held.result(timeout=30)
    with pytest.raises(EngineUnavailableError):
        late.result(timeout=30)
    assert not has_run.is_set()


def test_a_command_that_nobody_waits_for_any_more_is_left_out(model: Any) -> None:
    """Who awaits a command and goes away, as a client that hangs up, cancels its future; the loop lives on."""
    loop = EngineLoop(engine_for(model), lambda deltas: None)
    busy, go_on, done = threading.Event(), threading.Event(), []

    def hold(engine: Engine) -> None:
        busy.set()
        go_on.wait(30)

    held = loop.call(hold)
    dropped = loop.call(lambda engine: done.append("dropped"))
    kept = loop.call(lambda engine: done.append("kept"))
    loop.start()
    assert busy.wait(30)
    assert not held.cancel(), "it runs already"
    assert dropped.cancel()
    go_on.set()
    kept.result(timeout=30)
    assert done == ["kept"]
    assert loop.status().running == 0
    loop.stop()


def test_the_smallest_context_with_the_longest_speculation(model: Any) -> None:
    """What the configuration allows must start: calibration has little room here."""
    engine = engine_for(model, context_tokens=16, max_length=16, fixed_length=16, num_slots=1, calibrated=True)
    asked = Request(request_id="r", prompt_ids=(3, 1, 4), params=greedy(60))
    assert run(engine, [asked])["r"].ids == plain_greedy(model, (3, 1, 4), 13)


@pytest.mark.parametrize("name", ["feature, random", "model, good"])
def test_reading_prompts_is_not_taken_for_drafting(model: Any, name: str) -> None:
    """Queries that end after the one round in which the drafter has all of their prompts to read."""
    engine = engine_for(model, DRAFTERS[name], fixed_length=1)
    params = greedy(3, ignore_eos=True)
    run(engine, [Request(request_id=str(n), prompt_ids=tuple(range(2, 22)), params=params) for n in range(3)])
    assert engine.counters.values["proposed_total"] == 3
    [arm] = engine.policy.arms
    assert arm.costs.draft.scale == 1.0 and arm.costs.reading.scale != 1.0


def test_what_is_measured_at_the_start_is_forgotten(model: Any, make_drafter: MakeDrafter) -> None:
    """Calibration runs both models over the very rows that queries then use."""
    engine = engine_for(model, make_drafter, calibrated=True)
    assert engine.policy.verify.ms(1, 1) > 0
    assert all(arm.costs.reading.ms(1, 10) > 0 for arm in engine.policy.arms)
    asked = requests([12, 3, 25, 7])
    answers = run(engine, asked)
    assert [answers[request.request_id].ids for request in asked] == [plain(model, request) for request in asked]


def test_an_engine_without_a_drafter_refuses_no_length(model: Any) -> None:
    engine = engine_for(model, DRAFTERS["none"], fixed_length=None)
    asked = Request(request_id="r", prompt_ids=(3, 1, 4), params=greedy(12), speculation_length=4)
    answer = run(engine, [asked])["r"]
    assert answer.ids == plain(model, asked)
    assert answer.stats is not None
    assert answer.stats.proposed == 0
    assert engine.status().drafter_kind == "none"
    assert not engine.status().speculation_enabled
