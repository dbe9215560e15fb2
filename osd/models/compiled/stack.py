"""The whole stack of a Llama-shaped decoder's layers as one compiled call.

Shapes: those of `osd.models.compiled.arguments`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, prange

from osd.models.compiled.arguments import COUNTERS, PHASES, Scratch, Span, Stack
from osd.models.compiled.attention import keep, look
from osd.models.compiled.bits import Array, inner
from osd.models.compiled.highest import highest, log_total
from osd.models.compiled.product import inputs, project, project_gated
from osd.models.compiled.rows import norm
from osd.models.compiled.sharing import shared
from osd.models.compiled.tiling import WIDTH

_LOOK_ROWS = 32
"""New positions of a row whose attention is one task."""


@inner
def _norm_rows(x_RH: Array, weight_H: Array, eps: np.float32, out_RH: Array, counters: int) -> None:
    for row in shared(counters, len(x_RH)):
        norm(x_RH[row], weight_H, eps, out_RH[row])


@inner
def _project(weights: int, is_int4: bool, x_RI: Array, out_RO: Array, is_added: bool, counters: int) -> None:
    x = inputs(x_RI, is_int4)
    for tile in shared(counters, (out_RO.shape[1] + WIDTH - 1) // WIDTH):
        project(tile, weights, x, out_RO, is_added)


@inner
def _attend(layer: int, stack: Stack, span: Span, scratch: Scratch, keep_counters: int, look_counters: int) -> None:
    cache_SYLD, norms_2D = stack.cache_ASYLD[layer], stack.head_norms_A2D[layer]
    num_key_heads = cache_SYLD.shape[1] // 2
    heads_RXD, attended_RND = scratch.heads_RXD, scratch.attended_RND
    for task in shared(keep_counters, len(span.starts_B) * num_key_heads):
        b, m = task // num_key_heads, task % num_key_heads
        heads_QXD = heads_RXD[b * span.num_new : (b + 1) * span.num_new]
        cache_YLD = cache_SYLD[span.first_row + b]
        keep(heads_QXD, stack.cos_LD, stack.sin_LD, norms_2D[1], stack.eps, cache_YLD, m, span.starts_B[b])
    num_parts = (span.num_new + _LOOK_ROWS - 1) // _LOOK_ROWS
    for task in shared(look_counters, len(span.starts_B) * num_parts * num_key_heads):
        b, m = task // (num_parts * num_key_heads), task % num_key_heads
        offset = task // num_key_heads % num_parts * _LOOK_ROWS
        rows = slice(b * span.num_new + offset, b * span.num_new + min(offset + _LOOK_ROWS, span.num_new))
        look(
            heads_RXD[rows],
            stack.cos_LD,
            stack.sin_LD,
            norms_2D[0],
            stack.eps,
            cache_SYLD[span.first_row + b],
            m,
            span.starts_B[b] + offset,
            span.firsts_B[b],
            stack.reaches_A[layer],
            stack.scale,
            attended_RND[rows],
        )


@inner
def _work(stack: Stack, span: Span, scratch: Scratch) -> None:
    """One thread's part of all layers and of the norm that follows them."""
    x_RH, normed_RH, gated_RI = scratch.x_RH, scratch.normed_RH, scratch.gated_RI
    stride, is_int4 = scratch.counters.strides[0], stack.is_int4
    for layer in range(len(stack.qkv_A)):
        phase = scratch.counters.ctypes.data + layer * PHASES * stride
        _norm_rows(x_RH, stack.norms_A2H[layer, 0], stack.eps, normed_RH, phase)
        _project(stack.qkv_A[layer], is_int4, normed_RH, scratch.heads_RP, False, phase + stride)
        _attend(layer, stack, span, scratch, phase + 2 * stride, phase + 3 * stride)
        _project(stack.attention_out_A[layer], is_int4, scratch.attended_RP, x_RH, True, phase + 4 * stride)
        _norm_rows(x_RH, stack.norms_A2H[layer, 1], stack.eps, normed_RH, phase + 5 * stride)
        x = inputs(normed_RH, is_int4)
        for tile in shared(phase + 6 * stride, (gated_RI.shape[1] + WIDTH - 1) // WIDTH):
            project_gated(tile, stack.gate_up_A[layer], x, gated_RI)
        _project(stack.down_A[layer], is_int4, gated_RI, x_RH, True, phase + 7 * stride)
    last = scratch.counters.ctypes.data + len(stack.qkv_A) * PHASES * stride
    _norm_rows(x_RH, stack.final_norm_H, stack.eps, normed_RH, last)


@inner
def _highest(n: int, logits_RV: Array, places_N: Array, ids_NK: Array, values_NK: Array, totals_N: Array) -> None:
    logits_V = logits_RV[places_N[n]]
    highest(logits_V, ids_NK[n], values_NK[n])
    if len(totals_N) > 0:
        totals_N[n] = log_total(logits_V, values_NK[n, 0])


def entries(sources: str) -> tuple[Callable[..., None], ...]:
    """Compiled: the stack (the norm's result is in `normed_RH`), one product, the highest logits, a norm.

    All but the last for one thread, then for several.

    Args:
        sources: a digest of the files that all this is compiled from. numba looks for what it compiled before by this
            file's time of change and by the values that a function closes over, and would not see another change.
    """
    options: dict[str, Any] = {"cache": True, "error_model": "numpy", "nogil": True}

    @njit(**options)  # type: ignore[untyped-decorator]  # numba is untyped
    def pass_alone(stack: Stack, span: Span, scratch: Scratch) -> None:
        sources  # noqa: B018
        _work(stack, span, scratch)

    @njit(**options, parallel=True)  # type: ignore[untyped-decorator]
    def pass_together(stack: Stack, span: Span, scratch: Scratch, num_threads: int) -> None:
        sources  # noqa: B018
        for _ in prange(num_threads):
            _work(stack, span, scratch)

    @njit(**options)  # type: ignore[untyped-decorator]
    def project_alone(weights: int, x_RI: Array, out_RO: Array) -> None:
        sources  # noqa: B018
        counters = np.zeros(COUNTERS, np.int64)
        _project(weights, False, x_RI, out_RO, False, counters.ctypes.data)

    @njit(**options, parallel=True)  # type: ignore[untyped-decorator]
    def project_together(weights: int, x_RI: Array, out_RO: Array, num_threads: int) -> None:
        sources  # noqa: B018
        counters = np.zeros(COUNTERS, np.int64)
        for _ in prange(num_threads):
            _project(weights, False, x_RI, out_RO, False, counters.ctypes.data)

    # With its types, so that it is compiled now and not while somebody waits for a token.
    @njit("void(uint16[:,::1],int64[::1],int32[:,::1],float32[:,::1],float32[::1])", **options)
    def highest_alone(logits_RV: Array, places_N: Array, ids_NK: Array, values_NK: Array, totals_N: Array) -> None:
        sources  # noqa: B018
        for n in range(len(places_N)):
            _highest(n, logits_RV, places_N, ids_NK, values_NK, totals_N)

    @njit("void(uint16[:,::1],int64[::1],int32[:,::1],float32[:,::1],float32[::1],int64)", **options, parallel=True)
    def highest_together(
        logits_RV: Array, places_N: Array, ids_NK: Array, values_NK: Array, totals_N: Array, num_threads: int
    ) -> None:
        sources  # noqa: B018
        counters = np.zeros(COUNTERS, np.int64)
        for _ in prange(num_threads):
            for n in shared(counters.ctypes.data, len(places_N)):
                _highest(n, logits_RV, places_N, ids_NK, values_NK, totals_N)

    @njit(**options)  # type: ignore[untyped-decorator]
    def norm_rows(x_RH: Array, weight_H: Array, eps: np.float32, out_RH: Array) -> None:
        sources  # noqa: B018
        for row in range(len(x_RH)):
            norm(x_RH[row], weight_H, eps, out_RH[row])

    return pass_alone, pass_together, project_alone, project_together, highest_alone, highest_together, norm_rows
