"""Log-probabilities, outcomes and seeds."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from osd.records.drafter_id import DrafterId
from osd.records.outcome import ACCEPTED, BONUS, RECOVERED
from osd.records.outcome_arrays import check_shapes, hidden_states, top_k_arrays
from osd.records.query import Request, SamplingParams
from tests.kit.engine_kit import Answers, ListRecorder, plain_greedy, plain_hidden, plain_logits, run
from tests.unit.engine.cases import DRAFTERS, PROMPTS, MakeDrafter, engine_for, greedy, requests, sampled


def test_logprobs_are_the_plain_models(model: Any, make_drafter: MakeDrafter) -> None:
    params = SamplingParams(temperature=0.7, top_p=0.8, seed=3, max_tokens=14, logprobs=5)
    request = Request(request_id="r", prompt_ids=(3, 1, 4), params=params)
    other = Request(request_id="o", prompt_ids=(2,), params=greedy(6, logprobs=0))
    answers = run(engine_for(model, make_drafter), [request, other, *requests([3, 9])])
    answer = answers["r"]
    plain_LV = plain_logits(model, [*request.prompt_ids, *answer.ids]).log_softmax(dim=-1)
    assert [entry.token_id for entry in answer.logprobs] == answer.ids
    for position, entry in enumerate(answer.logprobs):
        row_V = plain_LV[len(request.prompt_ids) - 1 + position]
        assert entry.logprob == pytest.approx(float(row_V[entry.token_id]), abs=1e-4)
        assert [token for token, _ in entry.top] == row_V.topk(5).indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(row_V.topk(5).values.tolist(), abs=1e-4)
    assert [len(entry.top) for entry in answers["o"].logprobs] == [0] * 6
    assert answers["r1"].logprobs == []


def test_an_outcome_says_what_happened(model: Any, make_drafter: MakeDrafter) -> None:
    """Kinds and rounds fit together, and every array row is the plain model's at its documented position."""
    engine = engine_for(model, make_drafter, recorder=(recorder := ListRecorder()), top_k=6, prompt_hidden_tokens=4)
    asked = [
        Request(request_id=f"r{n}", prompt_ids=PROMPTS[n], params=params, domain="d")
        for n, params in enumerate(
            [greedy(17), SamplingParams(seed=1, max_tokens=9), greedy(3), SamplingParams(seed=2, max_tokens=21)]
            + [greedy(1), SamplingParams(temperature=0.5, top_p=0.7, seed=4, max_tokens=12)]
        )
    ]
    answers = run(engine, asked)
    kind = engine.policy.arms[0].name if engine.policy.arms else "none"
    for request in asked:
        outcome, answer = recorder.outcomes[request.request_id], answers[request.request_id]
        check_shapes(outcome)
        assert (outcome.prompt_ids, list(outcome.output_ids)) == (request.prompt_ids, answer.ids)
        assert (outcome.domain, outcome.target_id, outcome.drafter_kind) == ("d", "tiny", kind)
        assert outcome.finish_reason == answer.finish_reason == "length"
        assert outcome.sampling.temperature == request.params.temperature
        _assert_kinds_fit_rounds(outcome.output_kinds, [(r.proposed, r.accepted) for r in outcome.rounds])
        assert all(
            one == (DrafterId(kind, 1) if outcome.rounds[n].proposed else None)
            for n, one in enumerate(outcome.drafters())
        )
        assert outcome.engine_id == "engine"
        ids = [*outcome.prompt_ids, *outcome.output_ids]
        num_prompt, num_output = len(outcome.prompt_ids), len(outcome.output_ids)
        top_ids, top_logprobs = top_k_arrays(outcome)
        plain_LV = plain_logits(model, ids).log_softmax(dim=-1)[num_prompt - 1 : num_prompt - 1 + num_output]
        assert top_ids.tolist() == plain_LV.topk(6).indices.tolist()
        expected_OK = plain_LV.topk(6).values
        torch.testing.assert_close(torch.tensor(top_logprobs).float(), expected_OK, atol=2e-3, rtol=2e-3)
        hidden_NH = hidden_states(outcome)
        if kind != "feature":
            assert hidden_NH is None
            continue
        assert outcome.hidden_start == max(num_prompt - 4, 0)
        expected_NH = plain_hidden(model, ids)[outcome.hidden_start : num_prompt + num_output - 1]
        if num_prompt + num_output - 1 > outcome.hidden_start:
            assert hidden_NH is not None
            torch.testing.assert_close(hidden_NH.float(), expected_NH, atol=2e-2, rtol=1e-2)


def _assert_kinds_fit_rounds(kinds: bytes, rounds: list[tuple[int, int]]) -> None:
    """Replay the rounds: the prefill's bonus, then each round's accepted tokens and its recovered or bonus one."""
    replayed = [BONUS]
    for proposed, accepted in rounds:
        replayed += [ACCEPTED] * accepted + [BONUS if accepted == proposed else RECOVERED]
    # An answer may end amid a round's accepted tokens.
    assert list(kinds) == replayed[: len(kinds)]
    assert len(replayed) - len(kinds) <= 1


def test_statistics_add_up(model: Any, make_drafter: MakeDrafter) -> None:
    engine = engine_for(model, make_drafter)
    answers = run(engine, requests([12, 3, 25, 7, 1]))
    stats = [answer.stats for answer in answers.values() if answer.stats]
    counts = engine.counters.values
    assert len(stats) == counts["queries_total"] == 5
    for one in stats:
        assert one.output_tokens == one.committed + 1  # the prefill's token belongs to no round
        assert one.accepted <= one.proposed
        assert one.prefill_ms > 0  # also of an answer that its first token ends
        assert one.committed <= one.accepted + one.rounds
    assert counts["committed_total"] == sum(one.committed for one in stats)
    assert counts["proposed_total"] == sum(one.proposed for one in stats)
    assert counts["accepted_total"] == sum(one.accepted for one in stats)
    assert counts["rounds_total"] == sum(one.rounds for one in stats)
    points = engine.history(10)
    assert sum(point.committed for point in points) == counts["committed_total"]
    assert sum(version["proposed"] for version in engine.status().acceptance_by_version.values()) == sum(
        one.proposed for one in stats
    )


def test_nothing_is_recorded_of_a_query_that_opts_out(model: Any) -> None:
    engine = engine_for(model, recorder=(recorder := ListRecorder()))
    out = Request(request_id="out", prompt_ids=(1, 2), params=greedy(5), store=False)
    answers = run(engine, [out, Request(request_id="in", prompt_ids=(1, 2), params=greedy(5))])
    assert answers["out"].ids == answers["in"].ids
    assert set(recorder.outcomes) == {"in"}
    assert engine.counters.values["queries_total"] == 2


def test_a_cancelled_query_is_recorded_as_far_as_it_got(model: Any) -> None:
    engine = engine_for(model, DRAFTERS["feature, random"], recorder=(recorder := ListRecorder()))
    engine.submit(Request(request_id="r", prompt_ids=(3, 1, 4), params=greedy(40)))
    engine.submit(Request(request_id="waits", prompt_ids=(3, 1, 4), params=greedy(40)))
    engine.cancel("waits")
    answers = Answers()
    for _ in range(3):
        answers.add(engine.step())
    answers.add(engine.cancel("r"))
    assert set(recorder.outcomes) == {"r"}
    outcome = recorder.outcomes["r"]
    check_shapes(outcome)
    assert (list(outcome.output_ids), outcome.finish_reason) == (answers["r"].ids, "cancelled")


def test_a_seed_gives_the_same_answer_in_any_company(model: Any, make_drafter: MakeDrafter) -> None:
    """With one drafter version and one speculation length; others in the batch may speculate as they like."""
    alone = run(engine_for(model, make_drafter), [sampled("r", 5)])["r"].ids
    company = [sampled(f"c{length}", length, length=length, max_tokens=5 + 4 * length) for length in range(5)]
    together = run(engine_for(model, make_drafter), [*company[:2], sampled("r", 5), *company[2:]])["r"].ids
    assert together == alone
    assert run(engine_for(model, make_drafter), [sampled("r", 6)])["r"].ids != alone


def test_without_a_seed_answers_differ(model: Any) -> None:
    answers = run(engine_for(model), [sampled(f"r{number}", None) for number in range(4)])
    assert len({tuple(answer.ids) for answer in answers.values()}) == 4


def test_a_query_of_one_prompt_answers_the_plain_python_way(model: Any) -> None:
    engine = engine_for(model)
    answers = Answers()
    answers.add(engine.generate(["dbe", "ch"], greedy(6)))
    assert answers["0"].ids == plain_greedy(model, (3, 1, 4), 6)
    assert answers["1"].ids == plain_greedy(model, (2, 7), 6)
