"""The benchmark of shapes: its drafter is as good as it was told to be, and it times the engine's own rounds."""

from __future__ import annotations

import json
import math
from random import Random

import pytest
import torch
from torch import Tensor

from benchmarks.random_models import SHAPES, random_llama, weight_bytes
from benchmarks.shape_bench import ShapeBench
from benchmarks.shape_peers import Assistance, assisted, generate, measure_peers
from benchmarks.shapes import main
from osd.kernels.backend import Backend
from osd.kernels.gpu.graphs import Work
from osd.records.proposal import DraftBatch
from osd.records.query import QueryStats, Request, SamplingParams
from tests.kit.backends import captured_by
from tests.kit.fx_capture import run_at_once

_LENGTH = 3


def make_bench(
    acceptance: float, *, kind: str = "feature", answer_tokens: int = 40, backend: Backend | None = None
) -> ShapeBench:
    return ShapeBench(
        random_llama(SHAPES["tiny"], torch.device("cpu")),
        SHAPES["tiny"],
        drafter_shape=SHAPES["tiny"] if kind == "model" else None,
        max_rows=3,
        length=_LENGTH,
        acceptance=acceptance,
        context_tokens=6,
        answer_tokens=answer_tokens,
        backend=backend,
    )


def prompts_of(num_prompts: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(SHAPES["tiny"].vocab_tokens, (num_prompts, 6), generator=generator)
    return ids_BL.tolist()


@pytest.mark.parametrize("kind", ["feature", "model"])
@pytest.mark.parametrize("acceptance", [0.0, 0.72, 1.0])
def test_as_much_is_accepted_as_was_asked_for(acceptance: float, kind: str) -> None:
    bench, prompts = make_bench(acceptance, kind=kind), prompts_of(3)
    plain = bench.decode(prompts, 0)
    assert all(len(answer) == 40 for answer in plain.answers)
    bench.drafter.remember(prompts, plain.answers)
    fast = bench.decode(prompts, _LENGTH)
    assert all(answer == own[: len(answer)] for answer, own in zip(fast.answers, plain.answers, strict=True))
    assert fast.run.proposed == _LENGTH * fast.run.row_rounds
    # Four standard errors of a share of independent draws; none where the share is 0 or 1.
    bound = 4 * math.sqrt(acceptance * (1 - acceptance) / fast.num_judged)
    assert abs(fast.num_accepted / fast.num_judged - acceptance) <= bound
    if acceptance in (0.0, 1.0):
        assert fast.run.committed == fast.run.row_rounds * (1 + acceptance * _LENGTH)


@pytest.mark.parametrize("kind", ["feature", "model"])
def test_captured_rounds_are_replaced_as_well(kind: str) -> None:
    """As on a GPU, where each replay overwrites the last proposal."""
    captured: list[Work] = []

    def capture(work: Work, inputs: tuple[Tensor, ...]) -> Work:
        captured.append(work)
        return run_at_once(work, inputs)

    bench, prompts = make_bench(1.0, kind=kind, backend=captured_by(capture)), prompts_of(2)
    plain = bench.decode(prompts, 0)
    bench.drafter.remember(prompts, plain.answers)
    fast = bench.decode(prompts, _LENGTH)
    assert captured and fast.run.committed == fast.run.row_rounds * (1 + _LENGTH)
    assert all(answer == own[: len(answer)] for answer, own in zip(fast.answers, plain.answers, strict=True))


def test_rows_are_known_wherever_they_move_and_strangers_keep_the_drafters_own_tokens() -> None:
    bench, prompts = make_bench(1.0), prompts_of(3)
    bench.drafter.remember(prompts[1:], bench.decode(prompts[1:], 0).answers)
    stranger, *known = prompts
    ends = {"stranger": (stranger, 40), "soon": (known[0], 5), "late": (known[1], 40)}
    for name in ("soon", "stranger", "late"):  # the first row falls free first, and the last moves into it
        ids, max_tokens = ends[name]
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        bench.engine.submit(Request(request_id=name, prompt_ids=tuple(ids), params=params, speculation_length=_LENGTH))
    stats: dict[str, QueryStats] = {}
    while bench.engine.has_work:
        stats |= {delta.request_id: delta.stats for delta in bench.engine.step() if delta.stats}
    # Of 39 tokens after the prefill's, a round commits four.
    assert stats["late"].rounds == 10 and stats["soon"].rounds == 1
    assert stats["stranger"].accepted < stats["stranger"].proposed / 2


def test_sampled_rows_are_refused() -> None:
    bench = make_bench(0.5)
    target = bench.engine.target
    batch = DraftBatch(
        tokens_SL=target.tokens_SL,
        hidden_SLH=target.hidden_SLH,
        num_tokens=[4],
        lengths=[1],
        params=[SamplingParams(temperature=1.0)],
        generators=[Random()],
    )
    with pytest.raises(ValueError, match="greedy"):
        bench.drafter.propose(batch)


def test_answers_count_up_so_that_rounding_cannot_change_them() -> None:
    shape = SHAPES["tiny"]
    model = random_llama(shape, torch.device("cpu"))
    logits_V = model(input_ids=torch.tensor([[300, 7, 41]]), use_cache=False).logits[0, -1]
    assert int(logits_V.argmax()) == 42
    head_and_layers = sum(one.numel() for one in model.parameters()) - shape.vocab_tokens * shape.hidden_size
    assert weight_bytes(model) == 4 * head_and_layers


def make_assistance(acceptance: float, length: int = _LENGTH) -> Assistance:
    return Assistance(SHAPES["tiny"], length, acceptance, repeats=2, seed=0)


@pytest.mark.parametrize("acceptance", [0.0, 0.72, 1.0])
def test_the_assistant_of_transformers_is_as_good_as_it_was_told_to_be(acceptance: float) -> None:
    model, [prompt] = random_llama(SHAPES["tiny"], torch.device("cpu")), prompts_of(1)
    [answer] = generate(model, [prompt], 40).answers
    assert answer == [(prompt[-1] + count) % SHAPES["tiny"].vocab_tokens for count in range(1, 41)]
    found = assisted(model, prompt, answer, make_assistance(acceptance))
    assert found.num_equal == found.num_answers == 2 and found.decode_s > 0
    assert found.num_committed == found.num_accepted + found.num_rounds
    bound = 4 * math.sqrt(acceptance * (1 - acceptance) / found.num_judged)
    assert abs(found.num_accepted / found.num_judged - acceptance) <= bound
    if acceptance in (0.0, 1.0):
        assert found.num_committed == found.num_rounds * (1 + acceptance * _LENGTH)


def test_an_answer_that_is_not_the_plain_one_is_counted() -> None:
    model, [prompt] = random_llama(SHAPES["tiny"], torch.device("cpu")), prompts_of(1)
    assert assisted(model, prompt, [1] * 20, make_assistance(1.0)).num_equal == 0


def test_a_peer_that_fails_is_named_and_costs_nothing_else() -> None:
    model = random_llama(SHAPES["tiny"], torch.device("cpu"))
    broken = make_assistance(0.5, length=-1)
    [one, two], missing = measure_peers(("generate", "assisted"), model, [prompts_of(1), prompts_of(2)], 20, broken)
    assert one["generate_tokens_per_s"] and two["generate_tokens_per_s"]
    assert one["assisted_tokens_per_s"] is two["assisted_tokens_per_s"] is None
    assert missing.keys() == {"assisted"} and "Error: " in missing["assisted"]


@pytest.mark.parametrize(
    ("flags", "drafter", "has_generate", "has_assisted"),
    [
        ("", "feature", True, True),
        ("--drafter model --drafter-shape tiny --peers assisted", "model", False, True),
        ("--peers=", "feature", False, False),
    ],
)
def test_it_ends_with_one_json_line(
    capsys: pytest.CaptureFixture[str], flags: str, drafter: str, has_generate: bool, has_assisted: bool
) -> None:
    options = "--shape tiny --batch 1 2 --length 2 --tokens 16 --context 6 --repeats 1 --threads 1 --device cpu --json"
    main([*options.split(), *flags.split()])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "shapes" and report["machine"]["commit"] and report["shape"] == "tiny"
    assert report["drafter"] == drafter and report["small_lm"] == "tiny" and not report["missing"]
    assert report["weight_bytes"] > 0 and report["copy_bytes_per_s"] > 0
    assert report["batches"].keys() == {"1", "2"}
    for batch, figures in report["batches"].items():
        assert figures["equal_to_plain"] == 1.0 and figures["judged_tokens"] > 0
        assert figures["ms_a_round"].keys() == {"decode", "draft", "verify", "host"}
        ran = {"generate": has_generate, "assisted": has_assisted and batch == "1"}
        for name, value in figures.items():
            is_told = all(ran[peer] for peer in ran if peer in name)
            assert (value is not None) == is_told, name
            assert value is None or name == "ms_a_round" or value > 0 or name.endswith("acceptance"), name
