"""The operations of a layer on rows between its matrix products, each in one launch.

Shapes: R rows, H hidden size, I size of the MLP, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from osd.kernels.gpu.product import Residual, padded_rows
from osd.kernels.reference.row_ops import Norm

_GATE_BLOCK = 1024


@triton.jit
def _enter(rows, next_norm, scaled, squares, size, SIZE_UP: tl.constexpr):
    """Scaled rows and sums of squares of a new residual stream. Programs `[R]`."""
    row, h = tl.program_id(0), tl.arange(0, SIZE_UP)
    is_within = h < size
    x = tl.load(rows + row * size + h, mask=is_within, other=0.0).to(tl.float32)
    norm = tl.load(next_norm + h, mask=is_within, other=0.0).to(tl.float32)
    tl.store(scaled + row * size + h, (x * norm).to(scaled.dtype.element_ty), mask=is_within)
    tl.store(squares + row, tl.sum(x * x, 0))


@triton.jit
def _norm(rows, added, norm, kept, normed, size, eps, SIZE_UP: tl.constexpr, HAS_ADDED: tl.constexpr):
    """RMS norm of the rows, or of their sum with others. Programs `[R]`."""
    row, h = tl.program_id(0), tl.arange(0, SIZE_UP)
    is_within = h < size
    x = tl.load(rows + row * size + h, mask=is_within, other=0.0)
    if HAS_ADDED:
        x = (x.to(tl.float32) + tl.load(added + row * size + h, mask=is_within, other=0.0).to(tl.float32)).to(x.dtype)
        tl.store(kept + row * size + h, x, mask=is_within)
    wide = x.to(tl.float32)
    wide *= tl.rsqrt(tl.sum(wide * wide, 0) / size + eps)
    wide *= tl.load(norm + h, mask=is_within, other=0.0).to(tl.float32)
    tl.store(normed + row * size + h, wide.to(normed.dtype.element_ty), mask=is_within)


@triton.jit
def _join(
    tokens, embedding, hidden, embedding_norm, hidden_norm, joined, size, embedding_eps, hidden_eps,
    SIZE_UP: tl.constexpr
):  # fmt: skip
    """Norms of the token's embedding and of the hidden state. Programs `[R, 2]`."""
    row, half, h = tl.program_id(0), tl.program_id(1), tl.arange(0, SIZE_UP)
    is_within = h < size
    source = hidden + row * size
    norm, eps = hidden_norm, hidden_eps
    if half == 0:
        source = embedding + tl.load(tokens + row) * size
        norm, eps = embedding_norm, embedding_eps
    x = tl.load(source + h, mask=is_within, other=0.0).to(tl.float32)
    x *= tl.rsqrt(tl.sum(x * x, 0) / size + eps)
    x *= tl.load(norm + h, mask=is_within, other=0.0).to(tl.float32)
    tl.store(joined + (row * 2 + half) * size + h, x.to(joined.dtype.element_ty), mask=is_within)


@triton.jit
def _gate(gate_up, gated, size, BLOCK: tl.constexpr):
    """`silu(gate) * up`. Programs `[R, I / BLOCK]`."""
    row, i = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_within = i < size
    gate = tl.load(gate_up + row * 2 * size + i, mask=is_within, other=0.0)
    wide = gate.to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + i, mask=is_within, other=0.0).to(tl.float32)
    passed = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32) * up
    tl.store(gated + row * size + i, passed.to(gate.dtype), mask=is_within)


def enter(rows_RH: Tensor, next_norm_H: Tensor) -> Residual:
    """Start the residual stream (see `osd.kernels.gpu.product`); at most `MOST_ROWS` rows."""
    num_rows, size = rows_RH.shape
    scaled_RH = torch.empty_like(rows_RH)
    squares_1R = rows_RH.new_empty(1, padded_rows(num_rows), dtype=torch.float32)
    _enter[(num_rows,)](rows_RH, next_norm_H, scaled_RH, squares_1R, size, SIZE_UP=triton.next_power_of_2(size))
    return Residual(rows_RH, scaled_RH, squares_1R)


def normed(rows_RH: Tensor, norm_H: Tensor, eps: float) -> Tensor:
    """The RMS norm of each row."""
    out_RH = torch.empty_like(rows_RH)
    _launch_norm(rows_RH, None, norm_H, rows_RH, out_RH, eps)
    return out_RH


def added_and_normed(rows_RH: Tensor, added_RH: Tensor, norm_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of both, and its RMS norm."""
    kept_RH, normed_RH = torch.empty_like(rows_RH), torch.empty_like(rows_RH)
    _launch_norm(rows_RH, added_RH, norm_H, kept_RH, normed_RH, eps)
    return kept_RH, normed_RH


def joined(
    tokens_R: Tensor,
    embedding_VH: Tensor,
    hidden_RH: Tensor,
    norms: tuple[Norm, Norm],
) -> Tensor:
    """`[norm of the token's embedding ; norm of the hidden state]` for each row, `[R, 2H]`.

    Args:
        tokens_R: int64.
        embedding_VH: contiguous.
        hidden_RH: contiguous.
        norms: of the embedding and of the hidden state.
    """
    num_rows, size = hidden_RH.shape
    joined_RJ = hidden_RH.new_empty(num_rows, 2 * size)
    _join[(num_rows, 2)](
        tokens_R, embedding_VH, hidden_RH, *(norm.weight for norm in norms), joined_RJ, size,
        *(norm.variance_epsilon for norm in norms), SIZE_UP=triton.next_power_of_2(size),
    )  # fmt: skip
    return joined_RJ


def gated(gate_up_RX: Tensor) -> Tensor:
    """`silu(gate) * up` (see `osd.kernels.reference.row_ops.silu_gate`): `[R, 2I]` to `[R, I]`."""
    num_rows, size = len(gate_up_RX), gate_up_RX.shape[1] // 2
    gated_RI = gate_up_RX.new_empty(num_rows, size)
    _gate[(num_rows, triton.cdiv(size, _GATE_BLOCK))](gate_up_RX, gated_RI, size, BLOCK=_GATE_BLOCK)
    return gated_RI


def _launch_norm(
    rows_RH: Tensor, added_RH: Tensor | None, norm_H: Tensor, kept_RH: Tensor, normed_RH: Tensor, eps: float
) -> None:
    num_rows, size = rows_RH.shape
    _norm[(num_rows,)](
        rows_RH, rows_RH if added_RH is None else added_RH, norm_H, kept_RH, normed_RH, size, eps,
        SIZE_UP=triton.next_power_of_2(size), HAS_ADDED=added_RH is not None,
    )  # fmt: skip
