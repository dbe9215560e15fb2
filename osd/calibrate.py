"""Measuring, at start, what drafting and verifying cost on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from osd.cost import CostCurve
from osd.models.target import Target
from osd.proposal import DraftBatch
from osd.protocols import Drafter
from osd.types import SamplingParams

_REPEATS = 4
_CONTEXT_TOKENS = 32


def calibrate(
    target: Target, drafter: Drafter | None, *, num_slots: int, max_length: int
) -> tuple[CostCurve, CostCurve]:
    """Time passes over dummy rows: one row and all rows, every speculation length.

    Returns:
        (verify cost by (rows, tokens a row), draft cost by (rows, speculation length)), in milliseconds.
    """
    verify_ms: dict[tuple[int, int], float] = {}
    draft_ms: dict[tuple[int, int], float] = {}
    context = max(min(_CONTEXT_TOKENS, target.max_context_tokens - max_length - _REPEATS - 2), 2)
    for rows in sorted({1, num_slots}):
        for length in range(max_length + 1):
            ids_BQ = torch.zeros(rows, length + 1, dtype=torch.long, device=target.lm.device)
            starts = [context] * rows
            verify_ms[rows, length + 1] = _best_ms(lambda ids=ids_BQ, at=starts: target.lm.forward(0, ids, at))  # type: ignore[misc]
        if drafter is None:
            continue
        for length in range(1, max_length + 1):
            draft_ms[rows, length] = _time_drafter(target, drafter, rows, length, context)
    return CostCurve(verify_ms), CostCurve(draft_ms or {(1, 1): 0.0})


def _time_drafter(target: Target, drafter: Drafter, rows: int, length: int, context: int) -> float:
    params = SamplingParams(temperature=0.0)

    def batch(num_tokens: int) -> DraftBatch:
        return DraftBatch(
            tokens_BL=target.tokens_SL[:rows],
            hidden_BLH=target.hidden_SLH[:rows],
            num_tokens=[num_tokens] * rows,
            lengths=[length] * rows,
            params=[params] * rows,
            generators=[torch.Generator()] * rows,
        )

    for row in range(rows):
        drafter.reset_row(row)
    drafter.propose(batch(context))
    known = iter(range(context + 1, context + 2 + _REPEATS))  # each call finds one token more, as in real rounds
    took_ms = _best_ms(lambda: drafter.propose(batch(next(known))))
    for row in range(rows):
        drafter.reset_row(row)
    return took_ms


def _best_ms(work: Callable[[], object]) -> float:
    """The fastest of a few runs: what the machine can do when nothing else disturbs it."""
    work()
    times_ms = []
    for _ in range(_REPEATS):
        started_s = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times_ms.append((time.perf_counter() - started_s) * 1e3)
    return min(times_ms)
