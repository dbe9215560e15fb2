"""The whole stack of layers of a Llama-shaped decoder, by threads that stay together from the first layer to the last.

The reference is `osd.kernels.reference.llama.Llama`, after its embedding. Shapes: those of `osd.kernels.cpu.arguments`.
"""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.arguments import LAYER_PHASES, Scratch, Span, Stack
from osd.kernels.cpu.attention import keep, ranking
from osd.kernels.cpu.bits import Array, compiled, inlined
from osd.kernels.cpu.products.product import project, project_gated
from osd.kernels.cpu.products.product_codes import project_codes, project_codes_gated
from osd.kernels.cpu.rows import norm
from osd.kernels.cpu.sharing import Turns, later, shared

_LOOK_ROWS = 32
"""Number of a row's new positions whose attention is one task."""


@inlined
def _norm_rows(x_RH: Array, weight_H: Array, eps: np.float32, out_RH: Array, turns: Turns) -> None:
    for row in shared(turns, len(x_RH)):
        norm(x_RH[row], weight_H, eps, out_RH[row])


@compiled
def project_rows(weights: int, bits: int, x_RI: Array, out_RO: Array, is_added: bool, turns: Turns) -> None:
    """One thread's share of a product with weights, quantised to `bits` bits unless that is 0."""
    if bits > 0:
        project_codes(weights, bits, x_RI, out_RO, is_added, turns)
    else:
        project(weights, x_RI, out_RO, is_added, turns)


@inlined
def _attend(layer: int, stack: Stack, span: Span, scratch: Scratch, turns: Turns) -> None:
    """Attention of one layer. A row with one task writes its keys and values in that task, while they are in the cache;
    a row with several tasks writes them in a phase before.
    """
    num_key_heads = stack.keys_ASMCKW.shape[2]
    num_parts = (span.num_new + _LOOK_ROWS - 1) // _LOOK_ROWS
    if num_parts > 1:
        for task in shared(turns, len(span.starts_B) * num_key_heads):
            _keep_new(layer, stack, span, scratch, task // num_key_heads, task % num_key_heads)
    heads_RXD, attended_RND = scratch.heads_RXD, scratch.attended_RND
    for task in shared(later(turns, 1), len(span.starts_B) * num_parts * num_key_heads):
        b, m = task // (num_parts * num_key_heads), task % num_key_heads
        if num_parts == 1:
            _keep_new(layer, stack, span, scratch, b, m)
        offset = task // num_key_heads % num_parts * _LOOK_ROWS
        rows = slice(b * span.num_new + offset, b * span.num_new + min(offset + _LOOK_ROWS, span.num_new))
        ranking(
            heads_RXD[rows],
            stack.cos_LD,
            stack.sin_LD,
            stack.head_norms_A2D[layer, 0],
            stack.eps,
            stack.keys_ASMCKW[layer, span.slots_B[b]],
            stack.values_ASMHTW[layer, span.slots_B[b]],
            m,
            span.starts_B[b] + offset,
            span.firsts_B[b],
            stack.reaches_A[layer],
            stack.scale,
            attended_RND[rows],
        )


@inlined
def _keep_new(layer: int, stack: Stack, span: Span, scratch: Scratch, b: int, m: int) -> None:
    """Write the keys and values of a row's new positions, for one key head."""
    keep(
        scratch.heads_RXD[b * span.num_new : (b + 1) * span.num_new],
        stack.cos_LD,
        stack.sin_LD,
        stack.head_norms_A2D[layer, 1],
        stack.eps,
        stack.keys_ASMCKW[layer, span.slots_B[b]],
        stack.values_ASMHTW[layer, span.slots_B[b]],
        m,
        span.starts_B[b],
    )


@compiled
def scratch_in(scratch_E: Array, stack: Stack, x_RH: Array, normed_RH: Array) -> Scratch:
    """A pass's scratch as views of one array that all threads share, since numba cannot pass them a tuple made here."""
    num_rows, num_heads, head_size = len(x_RH), stack.num_heads, stack.cos_LD.shape[1]
    num_projected = num_heads + 2 * stack.keys_ASMCKW.shape[2]
    attended = num_rows * num_projected * head_size
    gated = attended + num_rows * num_heads * head_size
    heads_E, attended_E = scratch_E[:attended], scratch_E[attended:gated]
    return Scratch(
        x_RH,
        normed_RH,
        heads_E.reshape(num_rows, num_projected * head_size),
        heads_E.reshape(num_rows, num_projected, head_size),
        attended_E.reshape(num_rows, num_heads * head_size),
        attended_E.reshape(num_rows, num_heads, head_size),
        scratch_E[gated : gated + num_rows * stack.gate_size].reshape(num_rows, stack.gate_size),
    )


@inlined
def run_layers(stack: Stack, span: Span, scratch: Scratch, turns: Turns) -> None:
    """One thread's share of all layers and of the norm after them."""
    x_RH, normed_RH, gated_RI, bits = scratch.x_RH, scratch.normed_RH, scratch.gated_RI, stack.bits
    for layer in range(len(stack.qkv_A)):
        begin = later(turns, layer * LAYER_PHASES)
        _norm_rows(x_RH, stack.norms_A2H[layer, 0], stack.eps, normed_RH, begin)
        project_rows(stack.qkv_A[layer], bits, normed_RH, scratch.heads_RP, False, later(begin, 1))
        _attend(layer, stack, span, scratch, later(begin, 2))
        project_rows(stack.attention_out_A[layer], bits, scratch.attended_RP, x_RH, True, later(begin, 4))
        _norm_rows(x_RH, stack.norms_A2H[layer, 1], stack.eps, normed_RH, later(begin, 5))
        gate_up = stack.gate_up_A[layer]
        if bits > 0:
            project_codes_gated(gate_up, bits, normed_RH, gated_RI, later(begin, 6))
        else:
            project_gated(gate_up, normed_RH, gated_RI, later(begin, 6))
        project_rows(stack.down_A[layer], bits, gated_RI, x_RH, True, later(begin, 7))
    _norm_rows(x_RH, stack.final_norm_H, stack.eps, normed_RH, later(turns, stack.num_phases - 1))
