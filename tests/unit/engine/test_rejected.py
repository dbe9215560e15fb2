"""What a round records after its first rejected token."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
import torch

from osd.drafters.suffix.lookup import SuffixLookup
from osd.drafters.suffix.pool import AnswerPool
from osd.io.codec import OutcomeFormatError, decode, encode
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.records.outcome import Outcome
from osd.records.outcome_arrays import check_shapes, rejected_arrays
from osd.records.query import Request, SamplingParams
from osd.verify import top_logprobs as ranking
from tests.kit.backends import TORCH
from tests.kit.engine_kit import (
    ListRecorder,
    feature_drafter,
    make_engine,
    make_target,
    model_drafter,
    perturbed,
    plain_logits,
    run,
)
from tests.unit.engine.cases import PROMPTS, greedy

TOP_K = 5


def _target(model: Any, **options: Any) -> Target:
    return make_target(model, backend=TORCH, **options)


def _recorded(target: Target, drafter: Drafter | None, asked: list[Request], **options: Any) -> dict[str, Outcome]:
    run(make_engine(target, drafter, recorder=(recorder := ListRecorder()), **options), asked)
    return recorder.outcomes


def _requests() -> list[Request]:
    params = [greedy(17), SamplingParams(seed=1, max_tokens=9), greedy(3), SamplingParams(seed=2, max_tokens=21)]
    params += [greedy(1), SamplingParams(temperature=0.5, top_p=0.7, seed=4, max_tokens=12)]
    return [Request(request_id=f"r{n}", prompt_ids=PROMPTS[n], params=one) for n, one in enumerate(params)]


def _rejected_by_round(outcome: Outcome) -> list[tuple[int, list[int], slice]]:
    """Of each round with a rejection: known tokens before it, all that it drafted, and its part of the arrays."""
    ids_R, _, _ = rejected_arrays(outcome)
    tokens, num_known, start, found = outcome.prompt_ids + outcome.output_ids, len(outcome.prompt_ids) + 1, 0, []
    for round_, num in zip(outcome.rounds, outcome.num_rejected(), strict=True):
        if num:
            drafted = [*tokens[num_known : num_known + round_.accepted], *ids_R[start : start + num].tolist()]
            found.append((num_known, drafted, slice(start, start + num)))
        start, num_known = start + num, num_known + round_.accepted + 1
    return found


@pytest.mark.parametrize("kind", ["feature", "model"])
def test_they_are_the_plain_models_after_the_drafted_tokens(model: Any, kind: str) -> None:
    """For greedy and sampled queries of several lengths in one batch."""
    target = _target(model)
    drafter = feature_drafter(target) if kind == "feature" else model_drafter(perturbed(model, 0.1), target)
    outcomes = _recorded(target, drafter, _requests(), fixed_length=4, top_k=6, rejected_top_k=TOP_K)
    num_rows, num_branched_late = 0, 0
    for outcome in outcomes.values():
        check_shapes(outcome)
        assert decode(encode(outcome)) == outcome
        tokens, (ids_R, top_ids_RK, log_probs_RK) = outcome.prompt_ids + outcome.output_ids, rejected_arrays(outcome)
        for num_known, drafted, rows in _rejected_by_round(outcome):
            num = rows.stop - rows.start
            assert len(drafted) <= 4
            if outcome.sampling.temperature == 0.0:
                assert tokens[num_known + len(drafted) - num] != drafted[-num], "the first of them was rejected"
            plain_LV = plain_logits(model, [*tokens[:num_known], *drafted]).log_softmax(dim=-1)[-num:]
            assert top_ids_RK[rows].tolist() == plain_LV.topk(TOP_K).indices.tolist()
            torch.testing.assert_close(
                torch.tensor(log_probs_RK[rows]).float(), plain_LV.topk(TOP_K).values, atol=2e-3, rtol=2e-3
            )
            num_rows, num_branched_late = num_rows + num, num_branched_late + (num < len(drafted))
        assert len(ids_R) == sum(outcome.num_rejected())
    assert num_rows > 30
    assert kind == "feature" or num_branched_late > 0, "also after tokens that were accepted"


def test_the_log_probabilities_of_emitted_tokens_stay_as_they_are(model: Any) -> None:
    asked = _requests()
    recorded = []
    for rejected_top_k in (0, TOP_K):
        target = _target(model)
        recorded.append(_recorded(target, feature_drafter(target), asked, rejected_top_k=rejected_top_k))
    for name, without in recorded[0].items():
        other = recorded[1][name]
        assert without.output_ids == other.output_ids
        assert (without.top_ids, without.top_logprobs) == (other.top_ids, other.top_logprobs)
        assert without.rejected_top_k == sum(without.num_rejected()) == len(without.rejected_ids) == 0


def test_a_query_that_is_not_recorded_ranks_nothing_more(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a recorded one, and with log-probabilities for its client."""
    target, ranked = _target(model), list[list[int]]()
    plain = ranking.top_logprobs

    def counting(logits: Any, tokens: Any, top_k: int, num_further: Any = ()) -> Any:
        ranked.append(list(num_further))
        return plain(logits, tokens, top_k, num_further)

    monkeypatch.setattr(ranking, "top_logprobs", counting)
    out = Request(request_id="out", prompt_ids=(1, 2), params=greedy(9, logprobs=2), store=False)
    asked = [out, Request(request_id="in", prompt_ids=(1, 2), params=greedy(9))]
    outcomes = _recorded(target, feature_drafter(target), asked, rejected_top_k=TOP_K)
    assert set(outcomes) == {"in"}
    assert sum(map(sum, ranked)) == len(rejected_arrays(outcomes["in"])[0]) > 0
    ranked.clear()
    target = _target(model)
    assert _recorded(target, feature_drafter(target), [out], rejected_top_k=TOP_K) == {}
    assert ranked and not any(map(sum, ranked))


def test_a_round_that_the_end_of_the_answer_cuts_off_has_none(model: Any) -> None:
    """The answer ends with an accepted token, so nothing was committed where the next one was rejected."""
    target = _target(model)
    asked = [Request(request_id="r", prompt_ids=(3, 1, 4), params=greedy(24))]
    own = _recorded(target, model_drafter(perturbed(model, 0.1), target), asked, fixed_length=4)["r"]
    place, cut_at = 1, set[int]()
    for round_ in own.rounds:
        if 0 < round_.accepted < round_.proposed:
            cut_at.add(own.output_ids[place + round_.accepted - 1])
        place += round_.accepted + 1
    num_cut = 0
    for token in cut_at:
        target = _target(model, eos_ids=[token])
        drafter = model_drafter(perturbed(model, 0.1), target)
        outcome = _recorded(target, drafter, asked, fixed_length=4, rejected_top_k=TOP_K)["r"]
        check_shapes(outcome)
        if not outcome.rounds:
            continue
        num_tokens = 1 + sum(one.accepted + 1 for one in outcome.rounds)
        if num_tokens > len(outcome.output_ids) and outcome.rounds[-1].num_rejected:
            num_cut += 1
            assert outcome.num_rejected()[-1] == 0
    assert num_cut > 0


def test_what_the_lookup_proposed_is_not_recorded(model: Any) -> None:
    """Half of the answers are known, so rows of one batch are drafted for by the lookup and by the drafter."""
    asked = [Request(request_id=f"r{n}", prompt_ids=PROMPTS[n], params=greedy(24)) for n in range(5)]
    pool, target = AnswerPool(1 << 16), _target(model)
    for number, one in enumerate(_recorded(target, None, asked).values()):
        if number % 2:
            pool.add("default", one.output_ids)
    target = _target(model)
    options = {"fixed_length": 3, "lookup": SuffixLookup(pool, 4), "rejected_top_k": TOP_K}
    by_arm = {"suffix": 0, "feature": 0}
    for outcome in _recorded(target, feature_drafter(target), asked, **options).values():
        check_shapes(outcome)
        for round_, num in zip(outcome.rounds, outcome.num_rejected(), strict=True):
            if round_.proposed > round_.accepted:
                by_arm[round_.drafter_name] += 1
                assert (num > 0) == (round_.drafter_name == "feature") or round_ is outcome.rounds[-1]
        for num_known, drafted, rows in _rejected_by_round(outcome):
            known = (outcome.prompt_ids + outcome.output_ids)[:num_known]
            plain_LV = plain_logits(model, [*known, *drafted])[rows.start - rows.stop :]
            assert rejected_arrays(outcome)[1][rows].tolist() == plain_LV.topk(TOP_K).indices.tolist()
    assert min(by_arm.values()) > 0


@pytest.mark.parametrize("field", ["rejected_ids", "rejected_top_ids", "rejected_top_logprobs"])
def test_an_array_of_the_wrong_size_is_named(model: Any, field: str) -> None:
    target = _target(model)
    outcome = _recorded(target, feature_drafter(target), _requests()[:1], rejected_top_k=TOP_K)["r0"]
    broken = msgspec.structs.replace(outcome, **{field: getattr(outcome, field)[:-2]})
    with pytest.raises(OutcomeFormatError, match=field):
        decode(encode(broken))


def test_bytes_of_an_outcome_are_as_documented(model: Any) -> None:
    """4 bytes a rejected token, and 6 for each of the target's most likely tokens after it."""
    target = _target(model)
    outcome = _recorded(target, feature_drafter(target), _requests(), rejected_top_k=TOP_K)["r0"]
    bare = msgspec.structs.replace(
        outcome, rejected_ids=b"", rejected_top_ids=b"", rejected_top_logprobs=b"", rejected_top_k=0
    )
    added = len(encode(outcome)) - len(encode(bare))
    headers = 3 * 4
    assert math.isclose(added, sum(outcome.num_rejected()) * (4 + 6 * TOP_K), abs_tol=headers)
