"""Several drafters in one engine: neighbouring rows of a batch are drafted for by different ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from osd.engine.engine import Engine
from osd.records.drafter_id import DrafterId
from osd.records.events import Event
from osd.records.proposal import Proposal, merge
from osd.records.query import Request, SamplingParams
from tests.kit.constraints import EvenTokens
from tests.kit.engine_kit import (
    ListRecorder,
    make_engine,
    make_target,
    manifest_of,
    model_drafter,
    perturbed,
    run,
    swap,
    weights_of,
)
from tests.kit.lookup_drafter import LookupDrafter
from tests.kit.taking_turns import take_turns
from tests.unit.engine.cases import PROMPTS, engine_for, greedy, plain, requests, sampled

_LOOKUP = DrafterId("lookup", 1)


def _two_armed(model: Any, **options: Any) -> Engine:
    target = make_target(model)
    return take_turns(make_engine(target, model_drafter(perturbed(model, 0.02), target), LookupDrafter(), **options))


def test_rows_of_one_batch_are_drafted_for_by_different_arms(model: Any) -> None:
    engine = _two_armed(model, recorder=(recorder := ListRecorder()))
    asked = requests([24, 30, 17, 30, 9, 21, 30])
    answers = run(engine, asked)
    assert [answers[request.request_id].ids for request in asked] == [plain(model, request) for request in asked]
    counts = engine.counters.by_drafter
    assert set(counts) == {DrafterId("model", 1), _LOOKUP}
    assert all(own["accepted"] > 0 for own in counts.values())
    status = engine.status()
    assert {(one.name, one.version): one.proposed for one in status.drafters} == {
        drafter: own["proposed"] for drafter, own in counts.items()
    }
    assert set(status.acceptance_by_version) == {1} and status.drafter_kind == "model"
    proposers = {drafter for outcome in recorder.outcomes.values() for drafter in outcome.drafters()}
    assert proposers == {None, *counts}


def test_a_seeded_answer_is_the_same_beside_rows_of_another_arm(model: Any) -> None:
    """The row's own arm is the first in both."""
    alone = run(_two_armed(model), [sampled("r", 5)])["r"].ids
    company = [sampled(f"c{seed}", seed, length=3) for seed in range(3)]
    assert run(_two_armed(model), [sampled("r", 5), *company])["r"].ids == alone


def test_an_arm_that_breaks_leaves_the_other_proposing(model: Any) -> None:
    events: list[Event] = []
    engine = _two_armed(model, on_event=events.append)
    [broken, _] = engine.policy.arms

    def propose(batch: object) -> Proposal:
        raise RuntimeError("a kernel is missing")

    broken.drafter.propose = propose  # type: ignore[method-assign]
    asked = requests([24, 30, 17, 30])
    answers = run(engine, asked)
    assert [answers[request.request_id].ids for request in asked] == [plain(model, request) for request in asked]
    assert set(engine.counters.by_drafter) == {_LOOKUP}
    assert broken.is_broken and events[0].data == {"drafter": "model"}


def test_a_swap_is_of_one_arm(model: Any) -> None:
    engine = _two_armed(model)
    swap(engine, manifest_of(2), weights_of(model))
    assert [arm.drafter.id for arm in engine.policy.arms] == [DrafterId("model", 2), _LOOKUP]
    [request] = requests([20])
    assert run(engine, [request])[request.request_id].ids == plain(model, request)


def test_both_arms_are_measured_and_chosen_among(model: Any) -> None:
    target = make_target(model)
    engine = make_engine(
        target, model_drafter(perturbed(model, 0.02), target), LookupDrafter(), calibrated=True, fixed_length=None
    )
    assert all(arm.costs.draft.ms(1, 1) > 0 for arm in engine.policy.arms)
    asked = requests([30, 30, 30])
    answers = run(engine, asked)
    assert [answers[request.request_id].ids for request in asked] == [plain(model, request) for request in asked]


@pytest.mark.parametrize("as_array", [False, True])
def test_proposals_for_different_rows_are_merged(as_array: bool) -> None:
    """Of the second nothing was drawn; the first has a row that offers nothing in between."""
    ids_BK, probs_BKV = torch.tensor([[5, 6], [7, 7], [8, 9]]), torch.full((3, 2, 4), 0.25)
    numbers: tuple[Any, Any] = (ids_BK.numpy(), probs_BKV.numpy()) if as_array else (ids_BK, probs_BKV)
    drawn = Proposal(numbers[0], [2, 0, 1], numbers[1], DrafterId("model", 1))
    certain = Proposal(torch.tensor([[0, 0, 0], [1, 2, 3]]), [0, 3], None, _LOOKUP)
    both = merge([drawn, certain], 4)
    assert both.lengths == [2, 3, 1, 0]
    assert np.asarray(both.token_ids_BK).tolist() == [[5, 6, 0], [1, 2, 3], [8, 9, 0], [0, 0, 0]]
    assert both.draft_probs_BKV is not None and both.draft_probs_BKV.shape == (4, 3, 4)
    assert [both.is_drawn(row) for row in range(3)] == [True, False, True]
    assert merge([certain], 2).draft_probs_BKV is None


@pytest.mark.parametrize("length", [0, 3])
def test_greedy_answers_keep_to_a_constraint(model: Any, length: int) -> None:
    """Also the prompt's first token; other rows of the batch are not restricted."""
    engine = engine_for(model)
    engine.submit(
        Request(request_id="even", prompt_ids=PROMPTS[0], params=greedy(20), speculation_length=length), EvenTokens()
    )
    params = SamplingParams(seed=3, max_tokens=20)
    engine.submit(Request(request_id="drawn", prompt_ids=PROMPTS[1], params=params), EvenTokens())
    free = Request(request_id="free", prompt_ids=PROMPTS[0], params=greedy(20))
    answers = run(engine, [free])
    assert all(token % 2 == 0 for token in [*answers["even"].ids, *answers["drawn"].ids])
    assert answers["free"].ids == plain(model, free) and any(token % 2 for token in answers["free"].ids)
