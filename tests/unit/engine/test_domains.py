"""Domains with drafters of their own: rows of one batch use their domain's, or the base drafter."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch

from osd.engine.engine import Engine
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.records.drafter_id import DrafterId
from osd.records.events import Event
from osd.records.proposal import DraftBatch, Proposal
from osd.records.query import Request, SamplingParams
from tests.kit.backends import TORCH
from tests.kit.engine_kit import (
    Answers,
    ListRecorder,
    feature_drafter,
    made_up_costs,
    make_engine,
    make_target,
    manifest_of,
    model_drafter,
    perturbed,
    run,
    tiny_llama,
    weights_of,
)
from tests.unit.engine.cases import PROMPTS, greedy, plain

MakeNamed = Callable[[Any, Target, str, int], Drafter]


def _model(model: Any, target: Target, name: str, seed: int) -> Drafter:
    return model_drafter(perturbed(model, 0.05, seed), target, name=name, backend=TORCH)


def _feature(model: Any, target: Target, name: str, seed: int) -> Drafter:
    return feature_drafter(target, seed=seed, name=name, backend=TORCH)


def _engine(model: Any, kind: str = "model", max_domains: int = 2, **options: Any) -> Engine:
    target = make_target(model, backend=TORCH)
    make = {"model": _model, "feature": _feature}[kind]
    return make_engine(target, make(model, target, kind, 1), max_domains=max_domains, **options)


def _give(engine: Engine, model: Any, domain: str, *, kind: str = "model", version: int = 1) -> Drafter:
    """The domain gets a drafter of its own."""
    make: MakeNamed = {"model": _model, "feature": _feature}[kind]
    drafter = make(model, engine.target, f"{kind}.{domain}", 10 + len(domain))
    drafter.id = DrafterId(drafter.id.name, version)
    engine.add_drafter(drafter, manifest_of(version, kind))
    return drafter


def _requests(domains: str, max_tokens: int = 24, sampled: bool = False) -> list[Request]:
    params = SamplingParams(temperature=0.9, seed=3, max_tokens=max_tokens) if sampled else greedy(max_tokens)
    return [
        Request(request_id=f"r{n}", prompt_ids=PROMPTS[n % len(PROMPTS)], params=params, domain=domain)
        for n, domain in enumerate(domains.split())
    ]


def _watched(drafter: Drafter, rows: Counter[str], name: str) -> None:
    """Count in `rows` for how many rows a drafter proposes."""
    propose = drafter.propose

    def counted(batch: Any) -> Proposal:
        rows[name] += sum(length > 0 for length in batch.lengths)
        return propose(batch)

    drafter.propose = counted  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["model", "feature"])
def test_each_row_is_drafted_for_by_its_domains_drafter(model: Any, kind: str) -> None:
    """Answers are the target's; each round names the drafter of its query's domain, and only that one proposed."""
    engine = _engine(model, kind, recorder=(recorder := ListRecorder()))
    proposed: Counter[str] = Counter()
    _watched(engine.policy.arms[0].drafter, proposed, kind)
    for domain in ("sql", "code"):
        _watched(_give(engine, model, domain, kind=kind), proposed, f"{kind}.{domain}")
    asked = _requests("sql default code sql other code default sql")
    answers = run(engine, asked)
    assert [answers[one.request_id].ids for one in asked] == [plain(model, one) for one in asked]
    named = {"sql": f"{kind}.sql", "code": f"{kind}.code"}
    counted: Counter[str] = Counter()
    for one in asked:
        drafters = recorder.outcomes[one.request_id].drafters()
        assert {d.name for d in drafters if d} == {named.get(one.domain, kind)}
        counted.update(d.name for d in drafters if d)
    assert counted == proposed and set(counted) == {kind, *named.values()}
    served = {(series.domain, series.drafter) for series, _ in engine.counters.served.totals() if series.drafter}
    assert served == {(one.domain, named.get(one.domain, kind)) for one in asked}


def test_sampled_rows_draw_from_their_own_drafters_distribution(model: Any) -> None:
    """A seeded answer is the same whether the other rows have other drafters or not."""
    alone = _engine(model)
    _give(alone, model, "sql")
    [request] = _requests("sql", sampled=True)
    expected = run(alone, [request])["r0"].ids
    mixed = _engine(model)
    for domain in ("sql", "code"):
        _give(mixed, model, domain)
    company = _requests("sql code default other", sampled=True)
    assert run(mixed, company)["r0"].ids == expected


def test_a_better_drafter_of_its_own_is_accepted_more_often(model: Any) -> None:
    """The base drafter guesses at random here, and the domain's own as the target does."""
    target = make_target(model, backend=TORCH)
    engine = make_engine(target, model_drafter(tiny_llama(99), target, backend=TORCH), max_domains=1)
    own = model_drafter(copy.deepcopy(model), target, name="model.sql", backend=TORCH)
    engine.add_drafter(own, manifest_of(1))
    answers = run(engine, _requests("sql default"))
    [sql, default] = (answers[name].stats for name in ("r0", "r1"))
    assert sql is not None and sql.accepted == sql.proposed > 0
    assert default is not None and default.accepted < 0.5 * default.proposed


@pytest.mark.parametrize("kind", ["model", "feature"])
def test_a_drafter_that_comes_in_the_middle_of_an_answer_reads_what_the_row_holds(model: Any, kind: str) -> None:
    """It proposes what one that was there from the beginning does."""
    asked = _requests("sql code", max_tokens=30)
    early = _engine(model, kind)
    _give(early, model, "sql", kind=kind)
    expected = run(early, asked)["r0"]
    late = _engine(model, kind, recorder=(recorder := ListRecorder()))
    answers = Answers()
    for one in asked:
        late.submit(one)
    for _ in range(4):
        answers.add(late.step())
    _give(late, model, "sql", kind=kind)
    run(late, answers=answers)
    assert answers["r0"].ids == expected.ids == plain(model, asked[0])
    names = [d.name for d in recorder.outcomes["r0"].drafters() if d]
    assert names == sorted(names) and set(names) == {kind, f"{kind}.sql"}  # first the base drafter, then its own


@pytest.mark.parametrize("kind", ["model", "feature"])
@pytest.mark.parametrize("since", [1, 3, 12])
def test_a_drafter_that_was_skipped_proposes_as_one_that_never_was(model: Any, kind: str, since: int) -> None:
    """It catches up from the kept tokens and hidden states: the same distributions as if it had been asked each time.

    In the row before, another query goes on; the skipped drafter is not asked for it either.
    """
    engine = _engine(model, kind)
    asked = _requests("code sql", max_tokens=30)
    answers = Answers()
    for one in asked:
        engine.submit(one)
    make: MakeNamed = {"model": _model, "feature": _feature}[kind]
    always, skipped = (make(model, engine.target, f"{kind}.sql", 7) for _ in range(2))

    def proposal(drafter: Drafter) -> Any:
        decoding = engine.scheduler.decoding
        params = [SamplingParams(temperature=1.0)] * len(decoding)
        batch = DraftBatch(
            tokens_SL=engine.target.tokens_SL,
            hidden_SLH=engine.target.hidden_SLH,
            num_tokens=[sequence.num_tokens for sequence in decoding],
            lengths=[0] * (len(decoding) - 1) + [3],
            params=params,
            generators=[Random(5) for _ in decoding],
        )
        made = drafter.propose(batch)
        return torch.as_tensor(made.draft_probs_BKV)[-1].clone()

    while len(engine.scheduler.decoding) < 2:
        answers.add(engine.step())
    proposal(skipped)
    for _ in range(since):
        proposal(always)
        answers.add(engine.step())
    torch.testing.assert_close(proposal(skipped), proposal(always), rtol=1e-3, atol=1e-4)


def test_the_least_recently_used_leaves_and_is_wanted_again(model: Any) -> None:
    engine, wanted = _engine(model, max_domains=2), list[str]()
    engine.policy.own.on_missing = wanted.append
    for domain in ("sql", "code"):
        _give(engine, model, domain)
    asked = _requests("sql")
    run(engine, asked)
    assert wanted == []
    _give(engine, model, "mail")  # in the place of `code`, since `sql` was used later
    assert [arm.name for arm in engine.policy.own] == ["model.sql", "model.mail"]
    asked = _requests("code mail sql")
    answers = run(engine, asked)
    assert wanted == ["code"]
    assert [answers[one.request_id].ids for one in asked] == [plain(model, one) for one in asked]
    stats = answers["r0"].stats
    assert stats is not None and [one.name for one in stats.drafters] == ["model"]
    _give(engine, model, "code", version=3)
    stats = run(engine, _requests("code"))["r0"].stats
    assert stats is not None and stats.drafters == (DrafterId("model.code", 3),)


def test_one_that_leaves_while_its_rows_decode_is_followed_by_the_base_drafter(model: Any) -> None:
    engine, answers = _engine(model, max_domains=1), Answers()
    _give(engine, model, "sql")
    asked = _requests("sql sql", max_tokens=30)
    for one in asked:
        engine.submit(one)
    for _ in range(5):
        answers.add(engine.step())
    _give(engine, model, "code")
    run(engine, answers=answers)
    for one in asked:
        assert answers[one.request_id].ids == plain(model, one)
        stats = answers[one.request_id].stats
        assert stats is not None and [d.name for d in stats.drafters] == ["model.sql", "model"]
    assert len(engine.rows._drafters) == 2


def test_a_domains_drafter_that_breaks_leaves_its_rows_to_the_base_drafter(model: Any) -> None:
    events: list[Event] = []
    engine = _engine(model, on_event=events.append)
    own = _give(engine, model, "sql")

    def propose(batch: object) -> Proposal:
        raise RuntimeError("a kernel is missing")

    own.propose = propose  # type: ignore[method-assign]
    asked = _requests("sql default")
    answers = run(engine, asked)
    assert [answers[one.request_id].ids for one in asked] == [plain(model, one) for one in asked]
    assert set(engine.counters.by_drafter) == {DrafterId("model", 1)}
    assert events[-1].message == (
        "drafter of domain 'sql', version 1 broke, decoding with the base drafter: a kernel is missing"
    )


def test_versions_are_swapped_and_removed_by_name(model: Any) -> None:
    events: list[Event] = []
    engine = _engine(model, on_event=events.append)
    own = _give(engine, model, "sql")
    assert isinstance(own, type(engine.policy.arms[0].drafter))
    engine.load_drafter("model.sql", manifest_of(2), own.prepare(weights_of(model), 2))  # type: ignore[attr-defined]
    assert [arm.drafter.id for arm in engine.policy.all_arms] == [DrafterId("model", 1), DrafterId("model.sql", 2)]
    stats = run(engine, _requests("sql"))["r0"].stats
    assert stats is not None and stats.accepted == stats.proposed and stats.drafters == (DrafterId("model.sql", 2),)
    engine.remove_drafter("model.sql")
    engine.remove_drafter("model.sql")
    assert engine.drafter("model.sql") is None and len(engine.rows._drafters) == 1
    assert [event.message.rsplit(" in ", 1)[0] for event in events] == [
        "drafter of domain 'sql', version 1 serves",
        "drafter of domain 'sql', version 1 -> 2",
        "drafter of domain 'sql', serves no more",
    ]


def test_kernels_take_over_each_drafters_rows(model: Any) -> None:
    """In the middle of two answers, whichever drafter was used last."""
    target = make_target(model, backend=TORCH)
    engine = make_engine(target, model_drafter(tiny_llama(99), target, backend=TORCH), max_domains=2)
    weights = {"model": tiny_llama(99), "model.sql": model, "model.code": tiny_llama(98)}
    for name in ("model.sql", "model.code"):
        engine.add_drafter(
            model_drafter(copy.deepcopy(weights[name]), target, name=name, backend=TORCH), manifest_of(1)
        )
    asked, answers = _requests("sql code default", max_tokens=30), Answers()
    for one in asked:
        engine.submit(one)
    for _ in range(6):
        answers.add(engine.step())
    serving = [arm.name for arm in engine.policy.all_arms]
    after = make_target(model, backend=TORCH)
    made: list[Drafter] = [
        model_drafter(copy.deepcopy(weights[name]), after, name=name, backend=TORCH) for name in serving
    ]
    engine.policy.own.use("sql")
    engine.take_over(after, made, made_up_costs(3))
    assert [arm.drafter for arm in engine.policy.all_arms] == made and set(engine.rows._drafters) == set(made)
    run(engine, answers=answers)
    assert [answers[one.request_id].ids for one in asked] == [plain(model, one) for one in asked]
    stats = answers["r0"].stats
    assert stats is not None and stats.accepted == stats.proposed > 12


def test_rounds_say_whose_version_they_judge(model: Any) -> None:
    """The base drafter's rounds name the domain, which is what a domain's first version is compared with."""
    engine = _engine(model)
    _give(engine, model, "sql")
    run(engine, _requests("sql code"))
    [base, own] = (arm.watch.take(everything=True) for arm in engine.policy.all_arms)
    assert {(one.query, one.domain) for one in base} == {("r1", "code")}
    assert {(one.query, one.domain) for one in own} == {("r0", "sql")}
    engine.set_judged({"model.sql"})
    assert [arm.watch.is_judged for arm in engine.policy.all_arms] == [False, True]


def test_without_the_setting_nothing_is_kept_or_asked_for(model: Any) -> None:
    engine, wanted = _engine(model, max_domains=0), list[str]()
    engine.policy.own.on_missing = wanted.append
    run(engine, _requests("sql code"))
    assert wanted == [] and engine.policy.all_arms == list(engine.policy.arms)
