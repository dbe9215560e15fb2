"""What the tests of the engine share: drafters good and bad, prompts, requests."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from osd.engine.engine import Engine
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.records.query import Request, SamplingParams
from tests.kit.engine_kit import (
    feature_drafter,
    make_engine,
    make_target,
    model_drafter,
    perturbed,
    plain_greedy,
    tiny_llama,
)

MakeDrafter = Callable[[Any, Target], Drafter | None]

DRAFTERS: dict[str, MakeDrafter] = {
    "none": lambda model, target: None,
    "model, random": lambda model, target: model_drafter(tiny_llama(99), target),
    "model, good": lambda model, target: model_drafter(perturbed(model, 0.02), target),
    "model, the target's own": lambda model, target: model_drafter(copy.deepcopy(model), target),
    "feature, random": lambda model, target: feature_drafter(target),
}
PROMPTS = [(3, 1, 4), (2, 7, 1, 8, 2, 8, 1, 8, 2, 8), (5,), tuple(range(20)), (9, 9, 9, 9), (1, 2), (6, 5, 3, 5, 8)]


def engine_for(model: Any, make_drafter: MakeDrafter | None = None, **options: Any) -> Engine:
    target_options = {name: options.pop(name) for name in ("eos_ids", "num_slots", "context_tokens") if name in options}
    target = make_target(copy.deepcopy(model), **target_options)
    return make_engine(target, (make_drafter or DRAFTERS["model, good"])(model, target), **options)


def greedy(max_tokens: int, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, **options)


def requests(lengths: Sequence[int], prompts: Sequence[tuple[int, ...]] = PROMPTS) -> list[Request]:
    return [
        Request(request_id=f"r{number}", prompt_ids=prompts[number % len(prompts)], params=greedy(length))
        for number, length in enumerate(lengths)
    ]


def plain(model: Any, request: Request) -> list[int]:
    return plain_greedy(model, request.prompt_ids, request.params.max_tokens)


def sampled(request_id: str, seed: int | None, length: int | None = 2, max_tokens: int = 16) -> Request:
    params = SamplingParams(temperature=0.9, seed=seed, max_tokens=max_tokens)
    return Request(request_id=request_id, prompt_ids=(3, 1, 4), params=params, speculation_length=length)
