"""The engine on a CUDA device: the same promises as on a CPU. Run with `pytest -m gpu` where there is one."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from osd.records.query import Request, SamplingParams
from tests.kit.engine_kit import feature_drafter, make_engine, make_target, model_drafter, plain_logits, run, tiny_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("kind", ["feature", "model"])
def test_greedy_answers_are_the_plain_models_own(kind: str) -> None:
    plain = tiny_llama(sharpness=4.0)
    target = make_target(copy.deepcopy(plain).cuda())
    drafter = feature_drafter(target) if kind == "feature" else model_drafter(tiny_llama(seed=5).cuda(), target)
    engine = make_engine(target, drafter, calibrated=True)
    prompts = {"a": (1, 2, 3), "b": (4, 5, 6, 7, 8, 9, 10), "c": (11,)}
    greedy = SamplingParams(temperature=0.0, max_tokens=16)
    answers = run(engine, [Request(request_id=name, prompt_ids=ids, params=greedy) for name, ids in prompts.items()])
    for name, ids in prompts.items():
        known = list(ids)
        for token in answers[name].ids:
            logits_V = plain_logits(plain, known)[-1]
            assert logits_V.max() - logits_V[token] < 1e-3
            known.append(token)


def test_sampled_queries_with_every_filter_finish() -> None:
    target = make_target(tiny_llama().cuda())
    engine = make_engine(target, feature_drafter(target))
    params = SamplingParams(
        temperature=0.8, top_p=0.9, top_k=12, min_p=0.01, presence_penalty=0.5, frequency_penalty=0.5, max_tokens=12
    )
    answers = run(engine, [Request(request_id=str(n), prompt_ids=(1, 2, n), params=params) for n in range(6)])
    assert all(len(answer.ids) == 12 for answer in answers.values())


@pytest.mark.parametrize("kind", ["feature", "model"])
def test_a_round_waits_for_the_device_once(kind: str) -> None:
    target = make_target(tiny_llama(sharpness=4.0).cuda())
    drafter = feature_drafter(target) if kind == "feature" else model_drafter(tiny_llama(seed=5).cuda(), target)
    engine = make_engine(target, drafter)
    params = SamplingParams(temperature=0.0, max_tokens=40)
    for number in range(3):
        request_id, prompt_ids = str(number), (1, 2, number)
        engine.submit(Request(request_id=request_id, prompt_ids=prompt_ids, params=params, speculation_length=2))
    for _ in range(4):  # prompts are read, graphs are captured
        engine.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            engine.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [
        f"{one.filename}:{one.lineno}: {one.message}" for one in caught if "called a synchroniz" in str(one.message)
    ]
    assert len(waits) == 1, waits
