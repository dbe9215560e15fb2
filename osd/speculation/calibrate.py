"""Measuring, at start, what drafting and verifying cost on this machine."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Generator
from functools import partial
from random import Random

import torch

from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.records.proposal import DraftBatch
from osd.records.query import SamplingParams
from osd.speculation.cost import CostCurve, Costs

NUM_TIMINGS = 6
_ENOUGH_S = 2.0
"""On a slow or busy machine, fewer repeats must do: nobody is served meanwhile."""
_CONTEXT_TOKENS = 32
_PROMPT_TOKENS = 128
_LEAST_MS = 1e-3


def calibrate(
    target: Target, drafter: Drafter | None, *, num_slots: int, max_length: int, num_timings: int = NUM_TIMINGS
) -> Costs:
    """Time passes over dummy rows, each so often: one row and all rows, every speculation length."""
    timings = calibration(target, drafter, num_slots=num_slots, max_length=max_length, num_timings=num_timings)
    while True:
        try:
            next(timings)
        except StopIteration as end:
            costs: Costs = end.value
            return costs


def calibration(
    target: Target,
    drafter: Drafter | None,
    *,
    num_slots: int,
    max_length: int,
    num_timings: int = NUM_TIMINGS,
    verify: CostCurve | None = None,
) -> Generator[None, None, Costs]:
    """The same, one timing after the other: a few milliseconds each, for whoever has something else to do between.

    Args:
        target: its passes are timed over its own rows, whose first positions are overwritten.
        drafter: if there is one; its rows are emptied.
        num_slots: rows.
        max_length: longest speculation.
        num_timings: of each kind.
        verify: what the target's passes cost, where that is known: they are not timed then, and no row is touched.
    """
    device = target.lm.device
    context = max(min(_CONTEXT_TOKENS, target.max_context_tokens - max_length - 2), 2)
    verify_ms: dict[tuple[int, int], float] = defaultdict(lambda: float("inf"))
    draft_ms: dict[tuple[int, int], float] = defaultdict(lambda: float("inf"))
    for rows in sorted({1, num_slots}):
        started_s = time.perf_counter()
        # Lengths take turns, so that a disturbance does not hit all runs of one; of each the fastest run counts.
        for repeat in range(num_timings):
            if repeat > 1 and time.perf_counter() - started_s > _ENOUGH_S:
                break
            for length in range(max_length + 1):
                if verify is None:
                    ids_BQ = torch.zeros(rows, length + 1, dtype=torch.long, device=device)
                    took_ms = _time_ms(device, partial(target.lm.forward, 0, ids_BQ, [context] * rows))
                    verify_ms[rows, length + 1] = min(verify_ms[rows, length + 1], took_ms)
                if drafter is not None and length > 0:
                    took_ms = _time_drafter_ms(target, drafter, rows, length, context)
                    draft_ms[rows, length] = min(draft_ms[rows, length], took_ms)
                yield
    verify = verify or CostCurve(verify_ms)
    if drafter is None:
        nothing = CostCurve({(1, 1): 0.0})
        return Costs(verify, nothing, nothing)
    num_read = max(min(_PROMPT_TOKENS, target.max_context_tokens - 2), 2)
    took_ms = min(_time_reading_ms(target, drafter, num_read) for _ in range(-(-num_timings // 2)))
    read_ms = max(took_ms - draft_ms[1, 1], _LEAST_MS)
    reading = CostCurve({(1, 1): read_ms / num_read, (1, num_read): read_ms})
    return Costs(verify, CostCurve(draft_ms), reading)


def _time_drafter_ms(target: Target, drafter: Drafter, rows: int, length: int, context: int) -> float:
    """One proposal after the target read one token more, as in real rounds; the rows are left empty."""
    drafter.propose(_batch(target, rows, length, context))
    batch = _batch(target, rows, length, context + 1)
    took_ms = _time_ms(target.lm.device, partial(drafter.propose, batch))
    for row in range(rows):
        drafter.reset_row(row)
    return took_ms


def _time_reading_ms(target: Target, drafter: Drafter, num_tokens: int) -> float:
    """A query's first proposal, of one token."""
    took_ms = _time_ms(target.lm.device, partial(drafter.propose, _batch(target, 1, 1, num_tokens)))
    drafter.reset_row(0)
    return took_ms


def _batch(target: Target, rows: int, length: int, num_tokens: int) -> DraftBatch:
    return DraftBatch(
        tokens_SL=target.tokens_SL,
        hidden_SLH=target.hidden_SLH,
        num_tokens=[num_tokens] * rows,
        lengths=[length] * rows,
        params=[SamplingParams(temperature=0.0)] * rows,
        generators=[Random()] * rows,
    )


def _time_ms(device: torch.device, work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started_s) * 1e3
