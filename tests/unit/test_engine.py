"""The engine's answers, greedy and seeded, against transformers' own; what it records; how queries end."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from osd.drafters.choose import ChainChoice
from osd.engine import Engine
from osd.loop import EngineLoop
from osd.models.target import Target
from osd.outcome import ACCEPTED, BONUS, RECOVERED
from osd.outcome_arrays import check_shapes, hidden_states, top_k_arrays
from osd.proposal import DraftBatch, Proposal
from osd.protocols import Drafter
from osd.types import (
    EngineUnavailableError,
    Event,
    PromptTooLongError,
    QueueFullError,
    Request,
    SamplingParams,
    TokenDelta,
    WeightsRefusedError,
)
from tests.engine_kit import (
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
    plain_greedy,
    plain_hidden,
    plain_logits,
    run,
    tiny_llama,
    weights_of,
)

MakeDrafter = Callable[[Any, Target], Drafter | None]

_DRAFTERS: dict[str, MakeDrafter] = {
    "none": lambda model, target: None,
    "model, random": lambda model, target: model_drafter(tiny_llama(99), target),
    "model, good": lambda model, target: model_drafter(perturbed(model, 0.02), target),
    "model, the target's own": lambda model, target: model_drafter(copy.deepcopy(model), target),
    "feature, random": lambda model, target: feature_drafter(target),
}
_PROMPTS = [(3, 1, 4), (2, 7, 1, 8, 2, 8, 1, 8, 2, 8), (5,), tuple(range(20)), (9, 9, 9, 9), (1, 2), (6, 5, 3, 5, 8)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(0)


@pytest.fixture(params=list(_DRAFTERS))
def make_drafter(request: pytest.FixtureRequest) -> MakeDrafter:
    return _DRAFTERS[request.param]


def engine_for(model: Any, make_drafter: MakeDrafter | None = None, **options: Any) -> Engine:
    target_options = {name: options.pop(name) for name in ("eos_ids", "num_slots", "context_tokens") if name in options}
    target = make_target(copy.deepcopy(model), **target_options)
    return make_engine(target, (make_drafter or _DRAFTERS["model, good"])(model, target), **options)


def greedy(max_tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **options)


def requests(lengths: Sequence[int], prompts: Sequence[tuple[int, ...]] = _PROMPTS) -> list[Request]:
    return [
        Request(request_id=f"r{number}", prompt_ids=prompts[number % len(prompts)], params=greedy(length))
        for number, length in enumerate(lengths)
    ]


def plain(model: Any, request: Request) -> list[int]:
    return plain_greedy(model, request.prompt_ids, request.params.max_tokens)


# ---- greedy answers are the target's own ---------------------------------------------------------------------------


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
        engine.load_drafter(manifest_of(number), versions[number % 2])
    for request in asked:
        assert answers[request.request_id].ids == plain(model, request)
    stats = answers["r0"].stats
    assert stats is not None
    assert len(stats.drafter_versions) > 3
    assert stats.drafter_version == stats.drafter_versions[-1]


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
    engine.load_drafter(manifest_of(2, "feature"), state)
    run(engine, answers=answers)
    assert [answers[request.request_id].ids for request in asked] == [plain(model, request) for request in asked]


@pytest.mark.parametrize(("kind", "factor"), [("model", 1e15), ("feature", 1e30)])
def test_weights_that_overflow_harm_neither_answers_nor_the_next_version(model: Any, kind: str, factor: float) -> None:
    """Finite but huge weights make the drafter's logits NaN; nothing of that may outlive the version."""
    target = make_target(copy.deepcopy(model))
    drafter: Drafter = model_drafter(copy.deepcopy(model), target) if kind == "model" else feature_drafter(target)
    engine = make_engine(target, drafter)
    good = {name: tensor.clone() for name, tensor in drafter.state().items()}
    huge = {name: tensor * factor if tensor.is_floating_point() else tensor for name, tensor in good.items()}
    engine.load_drafter(manifest_of(2), huge)
    spoilt = run(engine, requests([20, 30, 12, 25]))
    sampled = [
        Request(request_id=f"s{seed}", prompt_ids=(1, 2), params=SamplingParams(seed=seed, max_tokens=8))
        for seed in range(4)
    ]
    run(engine, sampled)
    engine.load_drafter(manifest_of(3), good)
    fresh = [
        Request(request_id=f"again {request.request_id}", prompt_ids=request.prompt_ids, params=request.params)
        for request in requests([20, 30, 12, 25])
    ]
    again = run(engine, fresh)
    for request in requests([20, 30, 12, 25]):
        assert spoilt[request.request_id].ids == plain(model, request)
        assert again[f"again {request.request_id}"].ids == plain(model, request)
    counts = engine.counters.by_version
    assert counts[2]["accepted"] < 0.2 * counts[2]["proposed"]
    reference = make_engine(
        sound := make_target(copy.deepcopy(model)),
        model_drafter(copy.deepcopy(model), sound) if kind == "model" else feature_drafter(sound),
    )
    run(reference, requests([20, 30, 12, 25]))
    assert counts[3]["accepted"] == reference.counters.by_version[1]["accepted"]


def test_the_same_prompt_many_times_at_once(model: Any, make_drafter: MakeDrafter) -> None:
    engine = engine_for(model, make_drafter)
    asked = [Request(request_id=f"n{number}", prompt_ids=(4, 2), params=greedy(15)) for number in range(8)]
    answers = run(engine, asked)
    assert {tuple(answer.ids) for answer in answers.values()} == {tuple(plain(model, asked[0]))}


@pytest.mark.parametrize("length", [0, 1, 2, 4])
def test_a_fixed_speculation_length_is_kept(model: Any, length: int) -> None:
    engine = engine_for(model, fixed_length=None)
    asked = Request(request_id="r", prompt_ids=(3, 1, 4), params=greedy(30), speculation_length=length)
    other = Request(request_id="o", prompt_ids=(2, 7), params=greedy(30), speculation_length=3)
    recorder = engine.recorder = ListRecorder()
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
    asked = [Request(request_id=f"r{n}", prompt_ids=_PROMPTS[n], params=greedy(18, **params)) for n in range(3)]
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


# ---- how a query ends ----------------------------------------------------------------------------------------------


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


def test_what_cannot_be_taken_is_refused_with_the_reason(model: Any) -> None:
    engine = engine_for(model, context_tokens=24, num_slots=2, max_waiting=1)
    with pytest.raises(PromptTooLongError, match="24 tokens, the context holds 24"):
        engine.submit(Request(request_id="long", prompt_ids=tuple(range(24))))
    with pytest.raises(ValueError, match="prompt is empty"):
        engine.submit(Request(request_id="empty", prompt_ids=()))
    with pytest.raises(ValueError, match="between 0 and 23"):
        engine.submit(Request(request_id="foreign", prompt_ids=(24,)))
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


# ---- resuming ------------------------------------------------------------------------------------------------------


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


# ---- log-probabilities and outcomes --------------------------------------------------------------------------------


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
        Request(request_id=f"r{n}", prompt_ids=_PROMPTS[n], params=params, domain="d")
        for n, params in enumerate(
            [greedy(17), SamplingParams(seed=1, max_tokens=9), greedy(3), SamplingParams(seed=2, max_tokens=21)]
            + [greedy(1), SamplingParams(temperature=0.5, top_p=0.7, seed=4, max_tokens=12)]
        )
    ]
    answers = run(engine, asked)
    kind = engine.drafter.kind if engine.drafter else "none"
    for request in asked:
        outcome, answer = recorder.outcomes[request.request_id], answers[request.request_id]
        check_shapes(outcome)
        assert (outcome.prompt_ids, list(outcome.output_ids)) == (request.prompt_ids, answer.ids)
        assert (outcome.domain, outcome.target_id, outcome.drafter_kind) == ("d", "tiny", kind)
        assert outcome.finish_reason == answer.finish_reason == "length"
        assert outcome.sampling.temperature == request.params.temperature
        _assert_kinds_fit_rounds(outcome.output_kinds, [(r.proposed, r.accepted) for r in outcome.rounds])
        assert all(one.drafter_version == (1 if one.proposed else 0) for one in outcome.rounds)
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
    engine = engine_for(model, _DRAFTERS["feature, random"], recorder=(recorder := ListRecorder()))
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


# ---- seeds ---------------------------------------------------------------------------------------------------------


def sampled(request_id: str, seed: int | None, length: int | None = 2, max_tokens: int = 16) -> Request:
    params = SamplingParams(temperature=0.9, seed=seed, max_tokens=max_tokens)
    return Request(request_id=request_id, prompt_ids=(3, 1, 4), params=params, speculation_length=length)


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


# ---- drafters that misbehave ---------------------------------------------------------------------------------------


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
        drafter.load({**feature_state(drafter.config, 1), "vocab_ids_R": torch.tensor(ids)}, 2)
    assert drafter.version == 1
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
    engine.load_drafter(manifest_of(2), drafter.state())
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
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    batch = DraftBatch(
        tokens_BL=torch.zeros(2, 4, dtype=torch.long),
        hidden_BLH=torch.zeros(2, 4, 2),
        num_tokens=[2, 2],
        lengths=[1, 3],
        params=[SamplingParams(), SamplingParams(top_k=2)],
        generators=generators,
    )
    choice = ChainChoice(batch, 6, torch.tensor([1, 3, 5]))
    for _ in range(choice.num_steps):
        choice.take(torch.tensor([[0.0, 1.0, 2.0]] * 2))
    proposal = choice.proposal(7)
    assert proposal.drafter_version == 7
    assert proposal.draft_probs_BKV is not None
    assert proposal.draft_probs_BKV[1].sum(dim=-1).tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert proposal.draft_probs_BKV[:, :, [0, 2, 4]].abs().sum() == 0
    assert (proposal.draft_probs_BKV[1] > 0).sum(dim=-1).tolist() == [2, 2, 2]  # the query's own top-k
    used = [torch.Generator().manual_seed(1) for _ in range(2)]
    torch.rand(1, generator=used[0])
    torch.rand(3, generator=used[1])
    for generator, expected in zip(generators, used, strict=True):
        assert torch.equal(generator.get_state(), expected.get_state())


# ---- the loop ------------------------------------------------------------------------------------------------------


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
        thread.join()
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


def test_whoever_waits_for_a_stopping_loop_is_told(model: Any) -> None:
    loop = EngineLoop(engine_for(model), lambda deltas: None)
    busy, go_on = threading.Event(), threading.Event()

    def hold(engine: Engine) -> None:
        busy.set()
        go_on.wait(30)

    loop.start()
    loop.call(hold)
    busy.wait(30)
    late = loop.call(lambda engine: engine.status())
    stopper = threading.Thread(target=loop.stop)
    stopper.start()
    while True:  # until the loop is stopping; then nothing new is taken
        try:
            loop.call(lambda engine: None)
        except EngineUnavailableError:
            break
    go_on.set()
    stopper.join()
    with pytest.raises(EngineUnavailableError):
        late.result(timeout=30)


# ---- odd sizes -----------------------------------------------------------------------------------------------------


def test_the_smallest_context_with_the_longest_speculation(model: Any) -> None:
    """What the configuration allows must start: calibration has little room here."""
    engine = engine_for(model, context_tokens=16, max_length=16, fixed_length=16, num_slots=1, calibrated=True)
    asked = Request(request_id="r", prompt_ids=(3, 1, 4), params=greedy(60))
    assert run(engine, [asked])["r"].ids == plain_greedy(model, (3, 1, 4), 13)


def test_what_is_measured_at_the_start_is_forgotten(model: Any, make_drafter: MakeDrafter) -> None:
    """Calibration runs both models over the very rows that queries then use."""
    engine = engine_for(model, make_drafter, calibrated=True)
    assert engine.policy.verify.ms(1, 1) > 0
    asked = requests([12, 3, 25, 7])
    answers = run(engine, asked)
    assert [answers[request.request_id].ids for request in asked] == [plain(model, request) for request in asked]


def test_an_engine_without_a_drafter_refuses_no_length(model: Any) -> None:
    engine = engine_for(model, _DRAFTERS["none"], fixed_length=None)
    asked = Request(request_id="r", prompt_ids=(3, 1, 4), params=greedy(12), speculation_length=4)
    answer = run(engine, [asked])["r"]
    assert answer.ids == plain(model, asked)
    assert answer.stats is not None
    assert answer.stats.proposed == 0
    assert engine.status().drafter_kind == "none"
    assert not engine.status().speculation_enabled
