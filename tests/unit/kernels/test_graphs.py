"""Captured rounds give what uncaptured ones give: what a CUDA graph would bake in is found on a CPU, too."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from osd.drafters.feature import FeatureDrafter
from osd.drafters.model import ModelDrafter
from osd.drafters.weights import model_state
from osd.engine.engine import Engine
from osd.kernels.backend import Backend
from osd.kernels.gpu.graphs import GraphPool, Work, bucket
from osd.models.slot_model import SlotModel
from osd.records.proposal import DraftBatch
from osd.records.query import Request, SamplingParams
from tests.kit.backends import TORCH, captured_by
from tests.kit.engine_kit import (
    VOCAB_TOKENS,
    feature_drafter,
    feature_state,
    make_engine,
    make_target,
    manifest_of,
    model_drafter,
    run,
    swap,
    tiny_llama,
)
from tests.kit.fx_capture import FxCapture

_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_work_is_captured_once_a_key() -> None:
    capture = FxCapture()
    pool = GraphPool(capture)
    doubled = [pool.run(2, lambda x: (2 * x,), torch.full((2,), float(value)))[0].tolist() for value in (1, 5)]
    assert doubled == [[2.0, 2.0], [10.0, 10.0]] and capture.num_captured == 1
    assert pool.run(3, lambda x: (2 * x,), torch.ones(3))[0].tolist() == [2.0] * 3
    assert capture.num_captured == 2


def test_the_stand_in_bakes_in_what_the_host_decides() -> None:
    """Or the tests below could not fail."""
    scale = [2.0]
    pool = GraphPool(FxCapture())
    assert pool.run(0, lambda x: (scale[0] * x,), torch.ones(1))[0].item() == 2.0
    scale[0] = 3.0
    assert pool.run(0, lambda x: (scale[0] * x,), torch.ones(1))[0].item() == 2.0
    with pytest.raises(RuntimeError):
        pool.run(1, lambda x: (x * float(x.sum().item()),), torch.ones(1))


@pytest.mark.parametrize("is_quicker", [False, True])
def test_of_two_ways_the_quicker_is_kept(is_quicker: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    ran: list[str] = []

    def noted(name: str, num_ticks: int) -> Work:
        def replay(x: Tensor) -> tuple[Tensor]:
            ran.append(name)
            for _ in range(num_ticks):
                next(clock)
            return (2 * x,)

        return replay

    captures = iter([noted("first", 5), noted("second", 2 if is_quicker else 9)])
    monkeypatch.setattr("osd.kernels.gpu.graphs.time.perf_counter", lambda: float(next(clock)))
    pool = GraphPool(lambda work, inputs: next(captures))
    for _ in range(3):
        assert pool.run("shape", lambda x: (2 * x,), torch.ones(1), instead=lambda x: (x + x,))[0].item() == 2.0
    assert ran[-3:] == ["second" if is_quicker else "first"] * 3
    assert ran.count("first") + ran.count("second") == len(ran) and ran.count("first") >= 5 <= ran.count("second")


@pytest.mark.parametrize(("value", "size"), [(1, 4), (4, 4), (5, 8), (33, 50), (50, 50)])
def test_sizes_are_rounded_up(value: int, size: int) -> None:
    assert bucket(value, 4, 50) == size


@pytest.mark.parametrize("sliding_window", [None, 6])
def test_a_captured_pass_is_the_pass(sliding_window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osd.kernels.gpu.decoder.SMALLEST_SEEN", 8)
    plain = tiny_llama()
    if sliding_window is not None:
        shape = {name: getattr(plain.config, name) for name in _SHAPE}
        config = MistralConfig(**shape, sliding_window=sliding_window, attn_implementation="sdpa")
        plain = MistralForCausalLM(config).eval().requires_grad_(False)
    capture = FxCapture()
    sizes: dict[str, Any] = {"num_slots": 5, "max_context_tokens": 40, "max_new_tokens": 16}
    eager = SlotModel(copy.deepcopy(plain), TORCH, **sizes)
    replayed = SlotModel(copy.deepcopy(plain), captured_by(capture), **sizes, max_round_tokens=3)
    generator = torch.Generator().manual_seed(2)
    starts = [9, 2, 14]
    for row, start in enumerate(starts):
        ids_1Q = torch.randint(0, VOCAB_TOKENS, (1, start), generator=generator)
        for model in (eager, replayed):
            model.forward(row, ids_1Q, [0])
    for num_new in (3, 1, 3, 3, 1, 3, 3):  # over the borders of several buckets of positions seen
        ids_BQ = torch.randint(0, VOCAB_TOKENS, (3, num_new), generator=generator)
        expected, got = eager.forward(0, ids_BQ, starts), replayed.forward(0, ids_BQ, starts)
        torch.testing.assert_close(got.logits_BQV, expected.logits_BQV, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got.hidden_BQH, expected.hidden_BQH, atol=1e-4, rtol=1e-4)
        starts = [start + num_new for start in starts]
    assert capture.num_captured < 7


def _rounds(drafter: Any, states: list[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor | None]]:
    """What it proposes to three growing rows, with a swap and a new query on the way."""
    generator = torch.Generator().manual_seed(6)
    tokens = torch.randint(0, VOCAB_TOKENS, (4, 90), generator=generator)
    hidden = torch.randn(4, 90, 32, generator=generator)
    greedy, hot = SamplingParams(temperature=0.0), SamplingParams(temperature=0.9)
    filtered = SamplingParams(temperature=0.7, top_p=0.8, top_k=5)
    num_tokens, proposals = [20, 3, 9], []
    for number, params in enumerate([[greedy] * 3, [greedy, hot, hot], [filtered, hot, greedy]] * 4):
        if number == 5:
            drafter.prepare(states[1], 2)()
        if number == 7:
            drafter.reset_row(1)
            num_tokens[1] = 30
        batch = DraftBatch(
            tokens_SL=tokens,
            hidden_SLH=hidden,
            num_tokens=num_tokens,
            lengths=[[3, 1, 2], [2, 2, 0], [4, 4, 4]][number % 3],
            params=params,
            generators=[Random(100 * number + row) for row in range(3)],
        )
        proposal = drafter.propose(batch)
        probs = proposal.draft_probs_BKV
        proposals.append((proposal.token_ids_BK.clone(), None if probs is None else probs.clone()))
        num_tokens = [num + 1 + (number + row) % 4 for row, num in enumerate(num_tokens)]
    return proposals


@pytest.mark.parametrize("kind", ["feature", "model"])
def test_a_captured_chain_is_the_chain(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, capture = make_target(tiny_llama(), backend=TORCH), FxCapture()

    def make(backend: Backend) -> FeatureDrafter | ModelDrafter:
        if kind == "feature":
            return feature_drafter(target, backend=backend)
        return model_drafter(tiny_llama(seed=5), target, backend=backend)

    monkeypatch.setattr("osd.drafters.model.CATCH_UP_TOKENS", 7)
    eager, replayed = make(TORCH), make(captured_by(capture))
    if isinstance(eager, FeatureDrafter):
        states = [feature_state(eager.config, seed) for seed in (1, 2)]
    else:
        states = [model_state(tiny_llama(seed, sharpness=4.0)) for seed in (6, 7)]
    for drafter in (eager, replayed):
        drafter.prepare(states[0], 1)()
    expected, got = _rounds(eager, states), _rounds(replayed, states)
    for (ids_BK, probs_BKV), (got_BK, got_probs_BKV) in zip(expected, got, strict=True):
        assert torch.equal(ids_BK, got_BK)
        assert (probs_BKV is None) == (got_probs_BKV is None)
        if probs_BKV is not None and got_probs_BKV is not None:
            torch.testing.assert_close(got_probs_BKV, probs_BKV, atol=1e-5, rtol=1e-4)
    assert 3 <= capture.num_captured <= 9


@pytest.mark.parametrize("kind", ["feature", "model"])
def test_an_engine_of_captured_rounds_answers_the_same(kind: str) -> None:
    def engine(backend: Backend) -> Engine:
        target = make_target(tiny_llama(sharpness=4.0), backend=backend)
        drafter = feature_drafter(target) if kind == "feature" else model_drafter(tiny_llama(seed=5), target)
        return make_engine(target, drafter)

    # The first one's prompt is as long as a round, and is none.
    prompts = [(3, 4, 5), *(tuple(range(1, 2 + 3 * number)) for number in range(4))]
    requests = [
        Request(
            request_id=str(number),
            prompt_ids=prompt,
            params=SamplingParams(
                temperature=0.8 if number % 2 else 0.0, top_p=0.9 if number > 2 else 1.0, seed=number, max_tokens=14
            ),
        )
        for number, prompt in enumerate(prompts)
    ]
    capture = FxCapture()
    expected, replaying = run(engine(TORCH), requests), engine(captured_by(capture))
    got = run(replaying, requests)
    assert {name: answer.ids for name, answer in got.items()} == {name: one.ids for name, one in expected.items()}
    assert capture.num_captured > 0
    if kind == "feature":
        drafter = replaying.policy.arms[0].drafter
        assert isinstance(drafter, FeatureDrafter)
        swap(replaying, manifest_of(2, "feature"), feature_state(drafter.config, 9))
        again = run(replaying, requests)  # sampled answers follow the drafter's draws, greedy ones do not
        assert all(again[name].ids == expected[name].ids for name in ("0", "2", "4"))
