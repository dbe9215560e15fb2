"""An engine with the `suffix` lookup beside a drafter, or with the lookup alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from osd.drafters.suffix.lookup import SuffixLookup
from osd.drafters.suffix.pool import AnswerPool
from osd.engine.engine import Engine
from osd.records.drafter_id import DrafterId
from osd.records.events import Event
from osd.records.proposal import DraftBatch, Offer, RowText
from osd.records.query import Request, SamplingParams
from tests.kit.engine_kit import ListRecorder, make_engine, make_target, run
from tests.unit.engine.cases import DRAFTERS, MakeDrafter, greedy, plain, requests, sampled

_SUFFIX = DrafterId("suffix", 0)
_LENGTHS = [24, 30, 17, 30, 9, 21, 30]


def _engine(
    model: Any, make_drafter: MakeDrafter, answers: Sequence[Sequence[int]] = (), **options: Any
) -> tuple[Engine, AnswerPool]:
    """It knows these answers of the default domain."""
    pool, target = AnswerPool(1 << 16), make_target(model)
    for answer in answers:
        pool.add("default", answer)
    options = {"fixed_length": None, "lookup": SuffixLookup(pool, 4), **options}
    return make_engine(target, make_drafter(model, target), **options), pool


@pytest.mark.parametrize("fixed_length", [None, 3])
def test_greedy_answers_stay_the_same(model: Any, make_drafter: MakeDrafter, fixed_length: int | None) -> None:
    """Half of the answers are known: rows of one batch are drafted for by the lookup, the drafter, or not at all."""
    asked = requests(_LENGTHS)
    expected = [plain(model, request) for request in asked]
    engine, _ = _engine(model, make_drafter, expected[::2], fixed_length=fixed_length)
    answers = run(engine, asked)
    assert [answers[request.request_id].ids for request in asked] == expected
    found = engine.counters.by_drafter[_SUFFIX]
    assert found["accepted"] >= 5


def test_sampled_answers_depend_on_the_seed_alone_whatever_their_company(model: Any) -> None:
    """Rows of one batch are moved when others end; the lookup's text must move with them."""
    known = [run(_engine(model, DRAFTERS["none"])[0], [sampled("r", seed, None)])["r"].ids for seed in range(5)]
    engine, _ = _engine(model, DRAFTERS["none"], known)
    alone = run(engine, [sampled("r", 5, None)])["r"].ids
    engine, _ = _engine(model, DRAFTERS["none"], known)
    company = [sampled(f"c{seed}", seed, None, max_tokens=3 * seed + 3) for seed in range(4)]
    assert run(engine, [*company, sampled("r", 5, None)])["r"].ids == alone


def test_a_known_answer_takes_a_round_for_every_five_tokens(model: Any) -> None:
    """But the first, in which one token is known, which occurs seven times."""
    [request] = requests([31])
    engine, _ = _engine(model, DRAFTERS["none"], [plain(model, request)] * 8)
    stats = run(engine, [request])[request.request_id].stats
    assert stats is not None and (stats.rounds, stats.accepted) == (7, 23)
    assert stats.drafters == (_SUFFIX,) and stats.drafter_version == 0


def test_another_domains_answers_are_not_used(model: Any) -> None:
    [request] = requests([20])
    engine, pool = _engine(model, DRAFTERS["none"])
    for _ in range(8):
        pool.add("other", plain(model, request))
    run(engine, [request])
    own_text_only = engine.counters.by_drafter.get(_SUFFIX, {"accepted": 0})["accepted"]
    engine, pool = _engine(model, DRAFTERS["none"], [plain(model, request)] * 8)
    run(engine, [request])
    assert engine.counters.by_drafter[_SUFFIX]["accepted"] > own_text_only


def test_a_lookup_with_nothing_to_offer_is_not_chosen(model: Any) -> None:
    """Nothing repeats here, so the drafter decodes as it would alone, round for round."""
    params = greedy(20)
    asked = [Request(request_id="r", prompt_ids=tuple(range(20)), params=params)]

    class Nothing(SuffixLookup):
        def offers(self, rows: Sequence[RowText], max_tokens: int) -> list[Offer]:
            return [Offer((), ())] * len(rows)

    rounds = []
    for lookup in (None, Nothing(AnswerPool(0), 4)):
        engine, _ = _engine(model, DRAFTERS["model, good"], recorder=(recorder := ListRecorder()), lookup=lookup)
        run(engine, asked)
        rounds.append(recorder.outcomes["r"].rounds)
    assert rounds[0] == rounds[1] and {one.drafter_name for one in rounds[1]} <= {"model", ""}


def test_a_lookup_that_breaks_is_left_out(model: Any) -> None:
    class Broken(SuffixLookup):
        def offers(self, rows: Sequence[RowText], max_tokens: int) -> list[Offer]:
            raise RuntimeError("an index is torn")

    events: list[Event] = []
    lookup = Broken(AnswerPool(0), 4)
    engine, _ = _engine(model, DRAFTERS["model, good"], lookup=lookup, on_event=events.append)
    asked = requests([12, 20])
    answers = run(engine, asked)
    assert [answers[one.request_id].ids for one in asked] == [plain(model, one) for one in asked]
    assert [event.data for event in events] == [{"drafter": "suffix"}]
    assert events[0].message == "drafter broke, decoding plainly: an index is torn"


def test_speculation_that_is_switched_off_or_fixed_to_zero_proposes_nothing(model: Any) -> None:
    [request] = requests([20])
    engine, _ = _engine(model, DRAFTERS["none"], [plain(model, request)] * 8, fixed_length=0)
    run(engine, [request])
    assert _SUFFIX not in engine.counters.by_drafter
    engine, _ = _engine(model, DRAFTERS["none"], [plain(model, request)] * 8)
    off = Request(request_id="off", prompt_ids=request.prompt_ids, params=request.params, speculation_length=0)
    assert run(engine, [off])["off"].ids == plain(model, request)
    assert _SUFFIX not in engine.counters.by_drafter


def test_a_fixed_length_is_proposed_in_full(model: Any) -> None:
    """By the lookup only where it offers that many."""
    recorder = ListRecorder()
    asked = requests([30, 30])
    known = [plain(model, request) for request in asked]
    engine, _ = _engine(model, DRAFTERS["model, good"], known * 4, fixed_length=3, recorder=recorder)
    run(engine, asked)
    for outcome in recorder.outcomes.values():
        *whole, _ = outcome.rounds
        assert {one.proposed for one in whole} == {3}
        assert "suffix" in {one.drafter_name for one in whole}


@pytest.mark.parametrize(
    ("drifting", "prefers"), [((), False), (("b",), False), (("b", "default"), True), (("*",), True)]
)
def test_rows_of_a_drifting_domain_prefer_the_lookup(model: Any, drifting: tuple[str, ...], prefers: bool) -> None:
    engine, _ = _engine(model, DRAFTERS["model, good"])
    engine.prefer_lookup(drifting)
    engine.submit(requests([20])[0])
    while not engine.scheduler.decoding or not engine.scheduler.decoding[0].rounds:
        engine.step()
    assert engine.scheduler.decoding[0].budget.prefers_lookup is prefers


@pytest.mark.parametrize("kind", ["model, good", "feature, random"])
def test_a_drafter_that_was_skipped_proposes_what_it_would_have_anyway(model: Any, kind: str) -> None:
    """It reads what was decoded without it from the target's tokens and hidden states."""
    target = make_target(model)
    [request] = requests([55])
    ids = (*request.prompt_ids, *plain(model, request))
    target.write_tokens(0, 0, ids)
    target.read(0, torch.tensor([ids[:-1]]), [0])
    always, skipped = (DRAFTERS[kind](model, target) for _ in range(2))
    assert always is not None and skipped is not None
    skips = random.Random(0)
    num, compared = len(request.prompt_ids) + 1, 0
    while num < len(ids):
        batch = DraftBatch(
            tokens_SL=target.tokens_SL,
            hidden_SLH=target.hidden_SLH,
            num_tokens=[num],
            lengths=[3],
            params=[SamplingParams(temperature=1.0)],
            generators=[random.Random(num)],
        )
        own = always.propose(batch)
        if skips.random() < 0.4:  # up to seven rounds in a row without it
            batch.generators[0].seed(num)
            late = skipped.propose(batch)
            assert torch.equal(torch.as_tensor(late.token_ids_BK), torch.as_tensor(own.token_ids_BK))
            torch.testing.assert_close(torch.as_tensor(late.draft_probs_BKV), torch.as_tensor(own.draft_probs_BKV))
            compared += 1
        num += skips.randint(1, 4)
    assert compared >= 3
