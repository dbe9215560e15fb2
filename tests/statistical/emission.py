"""What an engine emits for many queries, and drafters of several qualities."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from osd.drafters.suffix.lookup import SuffixLookup
from osd.drafters.suffix.pool import AnswerPool
from osd.engine.engine import Engine
from osd.models.target import Target
from osd.ports.constraint import RowConstraint
from osd.ports.drafter import Drafter
from osd.records.query import Request, SamplingParams
from osd.records.rules import AcceptRule
from tests.kit.engine_kit import make_engine, make_target, model_drafter, perturbed, tiny_llama
from tests.statistical.exact import CASES, TOKENS, Exact, p_value

ALARM = 1e-4
"""A p-value below it fails: with other seeds, one case in 10,000 of a sound engine."""
SAMPLES = 1000
"""Of each case: as many as `test_broken_rules.py` needs to notice every broken rule beyond doubt."""
SHARPNESS = 1.5
_SLOTS = 32


def emit(
    engine: Engine,
    *,
    lengths: Sequence[int],
    samples: int = SAMPLES,
    between: Callable[[int], None] = lambda step: None,
    constraint: Callable[[], RowConstraint | None] = lambda: None,
    **sampling: Any,
) -> dict[str, list[list[int]]]:
    """The first tokens of many requests, both cases mixed in every batch."""
    outputs: dict[str, list[int]] = {}
    for number in range(samples):
        for name, (params, prompt) in CASES.items():
            engine.submit(
                Request(
                    request_id=f"{name}-{number}",
                    prompt_ids=prompt,
                    params=SamplingParams(
                        temperature=params.temperature,
                        top_p=params.top_p,
                        seed=number,
                        max_tokens=TOKENS + 1,
                        **sampling,
                    ),
                    speculation_length=lengths[number % len(lengths)],
                ),
                constraint(),
            )
    step = 0
    while engine.has_work:
        between(step)
        for delta in engine.step():
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
        step += 1
    return {name: [outputs[f"{name}-{number}"][:TOKENS] for number in range(samples)] for name in CASES}


def engine_with(
    model: Any,
    rule: AcceptRule,
    *make_drafters: Callable[[Target], Drafter],
    is_int4: bool = False,
    pool: AnswerPool | None = None,
    hidden_layers: Sequence[int] = (),
) -> Engine:
    """With the suffix lookup where there is a pool of answers."""
    target = make_target(
        copy.deepcopy(model), num_slots=_SLOTS, context_tokens=32, is_int4=is_int4, hidden_layers=hidden_layers
    )
    lookup = None if pool is None else SuffixLookup(pool, _SLOTS)
    made = [make(target) for make in make_drafters]
    # Prompts are shorter than what the prefix cache shares.
    return make_engine(target, *made, chunk_tokens=128, accept_rule=rule, lookup=lookup, prefix_caching=False)


def p_values(outputs: dict[str, list[list[int]]], exact: dict[str, Exact]) -> dict[str, float]:
    return {name: p_value(samples, exact[name]) for name, samples in outputs.items()}


def acceptance(engine: Engine) -> float:
    return engine.counters.values["accepted_total"] / engine.counters.values["proposed_total"]


def good_drafter(model: Any, target: Target) -> Drafter:
    return model_drafter(perturbed(model, 0.03), target)


def fair_drafter(model: Any, target: Target) -> Drafter:
    """Right one time in three, where a wrong rule shows most."""
    return model_drafter(perturbed(model, 0.12), target)


def bad_drafter(target: Target) -> Drafter:
    return model_drafter(tiny_llama(77, sharpness=SHARPNESS).to(target.lm.dtype), target)
