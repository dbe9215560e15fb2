"""Calibration: measures, before an engine serves, how long drafting and verifying take."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from random import Random

import torch

from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.records.proposal import DraftBatch
from osd.records.query import SamplingParams
from osd.speculation.cost import ArmCosts, CostCurve, Costs

NUM_TIMINGS = 6
"""Number of timings for each kind of pass; the minimum is used."""
_ENOUGH_S = 2.0
"""On a slow or busy machine, calibration stops repeating after this time, since nothing is served meanwhile."""
_CONTEXT_TOKENS = 32
_PROMPT_TOKENS = 128
_LEAST_MS = 1e-3
_Timings = dict[tuple[int, int], float]
"""Milliseconds by (rows, tokens per row)."""


def calibrate(
    target: Target, drafters: Sequence[Drafter], *, num_slots: int, max_length: int, num_timings: int = NUM_TIMINGS
) -> Costs:
    """Time passes over dummy rows, for one row and all rows and every speculation length. See `calibration`."""
    timings = calibration(target, drafters, num_slots=num_slots, max_length=max_length, num_timings=num_timings)
    while True:
        try:
            next(timings)
        except StopIteration as end:
            costs: Costs = end.value
            return costs


def calibration(
    target: Target,
    drafters: Sequence[Drafter],
    *,
    num_slots: int,
    max_length: int,
    num_timings: int = NUM_TIMINGS,
    verify: CostCurve | None = None,
) -> Generator[None, None, Costs]:
    """The calibration as a generator that yields after each timing of a few ms, so that steps can run between.

    Args:
        target: its passes are timed over its own rows, whose first positions are overwritten.
        drafters: their rows are emptied.
        num_slots: number of rows.
        max_length: longest speculation length.
        num_timings: for each kind of pass.
        verify: the target's costs if they are known; then its passes are not timed, and its rows not touched.
    """
    context = max(min(_CONTEXT_TOKENS, target.max_context_tokens - max_length - 2), 2)
    verify_ms: _Timings = {}
    draft_ms: list[_Timings] = [{} for _ in drafters]
    for rows in sorted({1, num_slots}):
        started_s = time.perf_counter()
        # Lengths take turns, so that a disturbance does not affect all timings of one; the minimum of each is used.
        for repeat in range(num_timings):
            if repeat > 1 and time.perf_counter() - started_s > _ENOUGH_S:
                break
            for length in range(max_length + 1):
                if verify is None:
                    ids_BQ = torch.zeros(rows, length + 1, dtype=torch.long, device=target.lm.device)
                    work = partial(target.lm.forward, 0, ids_BQ, [context] * rows)
                    _note(verify_ms, (rows, length + 1), _time_ms(target.lm.device, work))
                for drafter, own_ms in zip(drafters, draft_ms, strict=True):
                    if length:
                        _note(own_ms, (rows, length), _time_drafter_ms(target, drafter, rows, length, context))
                yield
    arms = []
    for drafter, own_ms in zip(drafters, draft_ms, strict=True):
        arms.append(ArmCosts(CostCurve(own_ms), _reading_curve(target, drafter, own_ms[1, 1], num_timings)))
    return Costs(verify or CostCurve(verify_ms), tuple(arms))


def _note(timings_ms: _Timings, key: tuple[int, int], took_ms: float) -> None:
    timings_ms[key] = min(timings_ms.get(key, took_ms), took_ms)


def _reading_curve(target: Target, drafter: Drafter, draft_ms: float, num_timings: int) -> CostCurve:
    """A drafter's time to process a prompt, by (1, tokens), without `draft_ms` for the token that it then proposes."""
    num_read = max(min(_PROMPT_TOKENS, target.max_context_tokens - 2), 2)
    took_ms = min(_time_reading_ms(target, drafter, num_read) for _ in range(-(-num_timings // 2)))
    read_ms = max(took_ms - draft_ms, _LEAST_MS)
    return CostCurve({(1, 1): read_ms / num_read, (1, num_read): read_ms})


def _time_drafter_ms(target: Target, drafter: Drafter, rows: int, length: int, context: int) -> float:
    """The time of one proposal after the target processed one more token, as in real rounds; empties the rows."""
    drafter.propose(_batch(target, rows, length, context))
    batch = _batch(target, rows, length, context + 1)
    took_ms = _time_ms(target.lm.device, partial(drafter.propose, batch))
    for row in range(rows):
        drafter.reset_row(row)
    return took_ms


def _time_reading_ms(target: Target, drafter: Drafter, num_tokens: int) -> float:
    """The time of a query's first proposal, of one token."""
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
