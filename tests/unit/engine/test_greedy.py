"""Greedy answers are the target's own, whatever the drafter does."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from osd.drafters.feature import FeatureDrafter
from osd.drafters.model import ModelDrafter
from osd.models.target import Target
from osd.records.drafter_id import DrafterId
from osd.records.query import Request, SamplingParams
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
    perturbed,
    plain_logits,
    run,
    swap,
    tiny_llama,
    weights_of,
)
from tests.unit.engine.cases import PROMPTS, MakeDrafter, engine_for, greedy, plain, requests


@pytest.mark.parametrize("fixed_length", [3, None])
def test_greedy_answers_of_queries_that_join_and_leave(
    model: Any, make_drafter: MakeDrafter, fixed_length: int | None
) -> None:
    """Fourteen queries of different lengths over four rows: rows are freed, filled and moved all the time."""
    engine = engine_for(model, make_drafter, fixed_length=fixed_length)
    asked = requests([12, 3, 25, 7, 1, 18, 2, 9, 30, 4, 6, 11, 5, 14])
    answers = run(engine, asked)
    for request in asked:
        answer = answers[request.request_id]
        assert answer.ids == plain(model, request), request
        assert answer.finish_reason == "length"
        assert answer.text == "".join(chr(ord("a") + token) for token in answer.ids)


def test_prompts_longer_than_a_chunk_are_read_while_others_decode(model: Any, make_drafter: MakeDrafter) -> None:
    engine = engine_for(model, make_drafter, chunk_tokens=6)
    asked = requests([20, 6, 9, 13, 8, 3], prompts=[(3, 1, 4), tuple(range(20)), tuple(range(23, 5, -1)), (5,)])
    answers = run(engine, asked)
    assert [answers[request.request_id].ids for request in asked] == [plain(model, request) for request in asked]


def test_rows_that_end_while_a_prompt_is_half_read(model: Any, make_drafter: MakeDrafter) -> None:
    engine = engine_for(model, make_drafter, chunk_tokens=4)
    first = requests([2, 3, 40])
    late = Request(request_id="late", prompt_ids=tuple(range(24)), params=greedy(10))
    answers = Answers()
    for request in first:
        engine.submit(request)
    answers.add(engine.step())
    answers.add(engine.step())
    run(engine, [late], answers)
    for request in [*first, late]:
        assert answers[request.request_id].ids == plain(model, request)


def test_hot_swaps_in_mid_stream_change_nothing(model: Any) -> None:
    engine = engine_for(model)
    versions = [weights_of(tiny_llama(99)), weights_of(perturbed(model, 0.02))]
    asked = requests([30, 20, 25, 12])
    answers, number = Answers(), 1
    for request in asked:
        engine.submit(request)
    while engine.has_work:
        answers.add(engine.step())
        number += 1
        swap(engine, manifest_of(number), versions[number % 2])
    for request in asked:
        assert answers[request.request_id].ids == plain(model, request)
    stats = answers["r0"].stats
    assert stats is not None
    assert len(stats.drafters) > 3
    assert DrafterId("model", stats.drafter_version) == stats.drafters[-1]


def _drafter_of(kind: str, model: Any, target: Target) -> ModelDrafter | FeatureDrafter:
    return model_drafter(copy.deepcopy(model), target) if kind == "model" else feature_drafter(target)


@pytest.mark.parametrize("kind", ["model", "feature"])
def test_prepared_weights_wait_for_their_swap(model: Any, kind: str) -> None:
    """Made ready on another thread while the old ones serve on, they do not follow the tensors they came from."""
    target = make_target(copy.deepcopy(model))
    drafter: ModelDrafter | FeatureDrafter = (
        model_drafter(copy.deepcopy(model), target) if kind == "model" else feature_drafter(target)
    )
    old = {name: tensor.clone() for name, tensor in drafter.state().items()}
    new = {name: tensor * 0.5 if tensor.is_floating_point() else tensor.clone() for name, tensor in old.items()}
    given = {name: tensor.clone() for name, tensor in new.items()}
    with ThreadPoolExecutor() as pool:
        swap_in = pool.submit(drafter.prepare, given, 7).result(60)
    for tensor in given.values():
        tensor.zero_()
    assert drafter.id.version == 1
    assert all(torch.equal(tensor, old[name]) for name, tensor in drafter.state().items())
    swap_in()
    assert drafter.id.version == 7
    assert all(torch.equal(tensor, new[name]) for name, tensor in drafter.state().items())


def test_a_feature_drafter_is_swapped_with_its_vocabulary(model: Any) -> None:
    target = make_target(copy.deepcopy(model))
    drafter = feature_drafter(target, vocab_tokens=8)
    engine = make_engine(target, drafter)
    state = {**feature_state(drafter.config, 5), "vocab_ids_R": torch.arange(23, 15, -1)}
    asked = requests([20, 20])
    for request in asked:
        engine.submit(request)
    answers = Answers()
    answers.add(engine.step())
    swap(engine, manifest_of(2, "feature"), state)
    run(engine, answers=answers)
    assert [answers[request.request_id].ids for request in asked] == [plain(model, request) for request in asked]


@pytest.mark.parametrize(("kind", "factor"), [("model", 1e15), ("feature", 1e30)])
def test_weights_that_overflow_harm_neither_answers_nor_the_next_version(model: Any, kind: str, factor: float) -> None:
    """Finite but huge weights make the drafter's logits NaN; nothing of that may outlive the version."""
    target = make_target(copy.deepcopy(model))
    drafter: ModelDrafter | FeatureDrafter = (
        model_drafter(copy.deepcopy(model), target) if kind == "model" else feature_drafter(target)
    )
    engine = make_engine(target, drafter)
    good = {name: tensor.clone() for name, tensor in drafter.state().items()}
    huge = {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in good.items()}
    swap(engine, manifest_of(2), huge)
    spoilt = run(engine, requests([20, 30, 12, 25]))
    sampled = [
        Request(request_id=f"s{seed}", prompt_ids=(1, 2), params=SamplingParams(seed=seed, max_tokens=8))
        for seed in range(4)
    ]
    run(engine, sampled)
    swap(engine, manifest_of(3), good)
    fresh = [
        Request(request_id=f"again {request.request_id}", prompt_ids=request.prompt_ids, params=request.params)
        for request in requests([20, 30, 12, 25])
    ]
    again = run(engine, fresh)
    for request in requests([20, 30, 12, 25]):
        assert spoilt[request.request_id].ids == plain(model, request)
        assert again[f"again {request.request_id}"].ids == plain(model, request)
    counts = engine.counters.by_drafter
    spoilt_counts = counts[DrafterId(kind, 2)]
    assert spoilt_counts["accepted"] < 0.2 * spoilt_counts["proposed"]
    reference = make_engine(
        sound := make_target(copy.deepcopy(model)),
        _drafter_of(kind, model, sound),
    )
    run(reference, requests([20, 30, 12, 25]))
    sound_counts = reference.counters.by_drafter[DrafterId(kind, 1)]
    assert counts[DrafterId(kind, 3)]["accepted"] == sound_counts["accepted"]


def test_the_same_prompt_many_times_at_once(model: Any, make_drafter: MakeDrafter) -> None:
    engine = engine_for(model, make_drafter)
    asked = [Request(request_id=f"n{number}", prompt_ids=(4, 2), params=greedy(15)) for number in range(8)]
    answers = run(engine, asked)
    assert {tuple(answer.ids) for answer in answers.values()} == {tuple(plain(model, asked[0]))}


@pytest.mark.parametrize("length", [0, 1, 2, 4])
def test_a_fixed_speculation_length_is_kept(model: Any, length: int) -> None:
    engine = engine_for(model, fixed_length=None, recorder=(recorder := ListRecorder()))
    asked = Request(request_id="r", prompt_ids=(3, 1, 4), params=greedy(30), speculation_length=length)
    other = Request(request_id="o", prompt_ids=(2, 7), params=greedy(30), speculation_length=3)
    answers = run(engine, [asked, other])
    assert answers["r"].ids == plain(model, asked)
    assert answers["o"].ids == plain(model, other)
    rounds = recorder.outcomes["r"].rounds
    left = 30 - 1
    for one in rounds:
        assert one.proposed == min(length, left - 1)
        left -= one.accepted + 1


@pytest.mark.parametrize("params", [{"presence_penalty": 1.5}, {"frequency_penalty": 0.9, "presence_penalty": -0.4}])
def test_greedy_with_penalties(model: Any, make_drafter: MakeDrafter, params: dict[str, float]) -> None:
    """Against a plain loop: each token counts in every later position, proposed or not."""
    asked = [Request(request_id=f"r{n}", prompt_ids=PROMPTS[n], params=greedy(18, **params)) for n in range(3)]
    answers = run(engine_for(model, make_drafter), asked)
    for request in asked:
        ids = list(request.prompt_ids)
        output: list[int] = []
        for _ in range(18):
            logits_V = plain_logits(model, ids + output)[-1]
            for token in range(VOCAB_TOKENS):
                count = output.count(token)
                logits_V[token] -= params.get("frequency_penalty", 0.0) * count
                logits_V[token] -= params["presence_penalty"] if count else 0.0
            output.append(int(logits_V.argmax()))
        assert answers[request.request_id].ids == output
