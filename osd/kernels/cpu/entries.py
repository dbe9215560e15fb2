"""The compiled functions that Python calls, each in a version for one thread and one for several.

Shapes: those of `osd.kernels.cpu.arguments`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numba import njit, prange

from osd.kernels.cpu.arguments import Chain, Choice, Known, Ranking, Shapes, Span, Stack, Trial
from osd.kernels.cpu.bits import Array, inlined
from osd.kernels.cpu.chain import run_chain
from osd.kernels.cpu.rows import norm
from osd.kernels.cpu.sharing import Turns, later, shared, turns_at
from osd.kernels.cpu.stack import project_rows, run_layers, scratch_in
from osd.kernels.cpu.verdicts.highest import rank_place
from osd.kernels.cpu.verdicts.token_rule import judge

_Entry: TypeAlias = Callable[..., None]


@inlined
def _project_and_rank(weights: int, bits: int, x_RI: Array, out_RO: Array, ranking: Ranking, turns: Turns) -> None:
    """A product, and a query to its result."""
    project_rows(weights, bits, x_RI, out_RO, False, turns)
    for n in shared(later(turns, 1), len(ranking.places_N)):
        rank_place(n, out_RO, ranking)


def entries(sources: str) -> dict[str, tuple[_Entry, ...]]:
    """The kernels by name, not yet compiled: layer stack (its normalised result is in `normed_RH`), drafting chain,
    product, product with the largest outputs, largest logits, verdicts on proposals, norm. All but the norm in a
    version for one thread and one for several; they take counters for their phases, all zero. Argument types are in
    `osd.kernels.cpu.compiling.signatures`.

    Args:
        sources: a digest of all source files. numba validates its cache by this file's modification time and the values
            in a function's closure, so every function refers to the digest, to be compiled anew after a change of
            another file.
    """
    options: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}

    @njit(**options)  # type: ignore[untyped-decorator]  # numba is untyped
    def pass_alone(stack: Stack, span: Span, x_RH: Array, normed_RH: Array, scratch_E: Array, counters: Array) -> None:
        sources  # noqa: B018
        scratch = scratch_in(scratch_E, stack, x_RH, normed_RH)
        run_layers(stack, span, scratch, turns_at(counters, 0, 1))

    @njit(**options, parallel=True)  # type: ignore[untyped-decorator]  # numba is untyped
    def pass_together(
        stack: Stack, span: Span, x_RH: Array, normed_RH: Array, scratch_E: Array, counters: Array, num_threads: int
    ) -> None:
        sources  # noqa: B018
        for thread in prange(num_threads):
            scratch = scratch_in(scratch_E, stack, x_RH, normed_RH)
            run_layers(stack, span, scratch, turns_at(counters, thread, num_threads))

    @njit(**options)  # type: ignore[untyped-decorator]  # numba is untyped
    def chain_alone(
        stack: Stack, chain: Chain, known: Known, choice: Choice, shapes: Shapes, scratch_E: Array, counters: Array
    ) -> None:
        sources  # noqa: B018
        run_chain(stack, chain, known, choice, shapes, scratch_E, turns_at(counters, 0, 1))

    @njit(**options, parallel=True)  # type: ignore[untyped-decorator]  # numba is untyped
    def chain_together(
        stack: Stack,
        chain: Chain,
        known: Known,
        choice: Choice,
        shapes: Shapes,
        scratch_E: Array,
        counters: Array,
        num_threads: int,
    ) -> None:
        sources  # noqa: B018
        for thread in prange(num_threads):
            run_chain(stack, chain, known, choice, shapes, scratch_E, turns_at(counters, thread, num_threads))

    @njit(**options)  # type: ignore[untyped-decorator]  # numba is untyped
    def project_alone(weights: int, bits: int, x_RI: Array, out_RO: Array, counters: Array) -> None:
        sources  # noqa: B018
        project_rows(weights, bits, x_RI, out_RO, False, turns_at(counters, 0, 1))

    @njit(**options, parallel=True)  # type: ignore[untyped-decorator]  # numba is untyped
    def project_together(
        weights: int, bits: int, x_RI: Array, out_RO: Array, counters: Array, num_threads: int
    ) -> None:
        sources  # noqa: B018
        for thread in prange(num_threads):
            project_rows(weights, bits, x_RI, out_RO, False, turns_at(counters, thread, num_threads))

    @njit(**options)  # type: ignore[untyped-decorator]  # numba is untyped
    def project_and_rank_alone(
        weights: int, bits: int, x_RI: Array, out_RO: Array, ranking: Ranking, counters: Array
    ) -> None:
        sources  # noqa: B018
        _project_and_rank(weights, bits, x_RI, out_RO, ranking, turns_at(counters, 0, 1))

    @njit(**options, parallel=True)  # type: ignore[untyped-decorator]  # numba is untyped
    def project_and_rank_together(
        weights: int, bits: int, x_RI: Array, out_RO: Array, ranking: Ranking, counters: Array, num_threads: int
    ) -> None:
        sources  # noqa: B018
        for thread in prange(num_threads):
            _project_and_rank(weights, bits, x_RI, out_RO, ranking, turns_at(counters, thread, num_threads))

    @njit(**options)  # type: ignore[untyped-decorator]  # numba is untyped
    def rank_alone(logits_RV: Array, ranking: Ranking, counters: Array) -> None:
        sources  # noqa: B018
        for n in range(len(ranking.places_N)):
            rank_place(n, logits_RV, ranking)

    @njit(**options, parallel=True)  # type: ignore[untyped-decorator]  # numba is untyped
    def rank_together(logits_RV: Array, ranking: Ranking, counters: Array, num_threads: int) -> None:
        sources  # noqa: B018
        for thread in prange(num_threads):
            for n in shared(turns_at(counters, thread, num_threads), len(ranking.places_N)):
                rank_place(n, logits_RV, ranking)

    @njit(**options)  # type: ignore[untyped-decorator]  # numba is untyped
    def judge_alone(logits_RV: Array, trial: Trial, shapes: Shapes, counters: Array) -> None:
        sources  # noqa: B018
        for s in range(len(trial.rows_S)):
            judge(s, logits_RV, trial, shapes)

    @njit(**options, parallel=True)  # type: ignore[untyped-decorator]  # numba is untyped
    def judge_together(logits_RV: Array, trial: Trial, shapes: Shapes, counters: Array, num_threads: int) -> None:
        sources  # noqa: B018
        for thread in prange(num_threads):
            for s in shared(turns_at(counters, thread, num_threads), len(trial.rows_S)):
                judge(s, logits_RV, trial, shapes)

    @njit(**options)  # type: ignore[untyped-decorator]  # numba is untyped
    def norm_rows(x_RH: Array, weight_H: Array, eps: np.float32, out_RH: Array) -> None:
        sources  # noqa: B018
        for row in range(len(x_RH)):
            norm(x_RH[row], weight_H, eps, out_RH[row])

    return {
        "pass": (pass_alone, pass_together),
        "chain": (chain_alone, chain_together),
        "project": (project_alone, project_together),
        "project_and_rank": (project_and_rank_alone, project_and_rank_together),
        "rank": (rank_alone, rank_together),
        "judge": (judge_alone, judge_together),
        "norm": (norm_rows,),
    }
