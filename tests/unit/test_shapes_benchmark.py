"""The benchmark of shapes: its drafter is as good as it was told to be, and it times the engine's own rounds."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks.random_models import SHAPES, random_llama, weight_bytes
from benchmarks.shapes import ShapeBench, main
from osd.proposal import DraftBatch
from osd.types import QueryStats, Request, SamplingParams
from tests.fx_capture import captured

_LENGTH = 3


def make_bench(acceptance: float, *, answer_tokens: int = 40) -> ShapeBench:
    return ShapeBench(
        random_llama(SHAPES["tiny"], torch.device("cpu")),
        SHAPES["tiny"],
        max_rows=3,
        length=_LENGTH,
        acceptance=acceptance,
        context_tokens=6,
        answer_tokens=answer_tokens,
    )


def prompts_of(num_prompts: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(SHAPES["tiny"].vocab_tokens, (num_prompts, 6), generator=generator)
    return ids_BL.tolist()


@pytest.mark.parametrize("acceptance", [0.0, 0.72, 1.0])
def test_as_much_is_accepted_as_was_asked_for(acceptance: float) -> None:
    bench, prompts = make_bench(acceptance), prompts_of(3)
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


def test_captured_rounds_are_replaced_as_well() -> None:
    """As on a GPU, where each replay overwrites the last proposal."""
    with captured() as capture:
        bench, prompts = make_bench(1.0), prompts_of(2)
        plain = bench.decode(prompts, 0)
        bench.drafter.remember(prompts, plain.answers)
        fast = bench.decode(prompts, _LENGTH)
    assert capture.num_captured and fast.run.committed == fast.run.row_rounds * (1 + _LENGTH)
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
        generators=[torch.Generator()],
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


def test_it_ends_with_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--shape tiny --batch 1 2 --length 2 --tokens 16 --context 6 --repeats 1 --threads 1 --device cpu --json"
    main(options.split())
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "shapes" and report["machine"]["commit"] and report["shape"] == "tiny"
    assert report["weight_bytes"] > 0 and report["copy_bytes_per_s"] > 0
    assert report["batches"].keys() == {"1", "2"}
    for figures in report["batches"].values():
        assert figures["equal_to_plain"] == 1.0 and figures["judged_tokens"] > 0
        assert figures["ms_a_round"].keys() == {"decode", "draft", "verify", "host"}
        assert all(value > 0 for name, value in figures.items() if name.endswith(("_per_s", "_ms", "_vs_generate")))
