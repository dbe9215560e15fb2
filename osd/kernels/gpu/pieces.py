"""Attention of few new positions over a long cache, in pieces that are processed in parallel (Flash-Decoding).

Flash-Decoding (Dao, Haziza, Massa and Sizov 2023) splits the cached positions into pieces; one program processes each
with an online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867), and a second kernel combines them. Rotary
embedding and writing new keys and values are part of the first kernel. Each row is read only as far as it is filled.

Shapes: B rows, Q new positions, N query heads, M key/value heads, G = N / M query heads that share one key head,
P = Q * G query rows of a key head, X = N + 2M, L cached positions, D head size, C pieces.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK, _BLOCK_OF_MANY = 128, 64
"""Positions per step of a program: a large number, since each step waits for the previous one.

The second is for many query rows, which leave too few registers for the first."""
_MANY_ROWS = 64
_NUM_STAGES = 2
_SHORTEST_PIECE = 256
_FEWEST_NEW = 8
_SMALLEST_TILE = 16
"""Smallest tile of a tensor-core product."""
ENOUGH_PROGRAMS = 264
"""Two for each of an H200's 132 multiprocessors; more pieces would only add work to combining them."""
_FAR = 1 << 30


@triton.jit
def _turned(x, swapped, angle, cos, sin, is_there):
    """Apply rotary embedding to heads, in their own dtype."""
    turned = x.to(tl.float32) * tl.load(cos + angle, mask=is_there, other=0.0).to(tl.float32)
    return (turned + swapped.to(tl.float32) * tl.load(sin + angle, mask=is_there, other=0.0).to(tl.float32)).to(x.dtype)


# Not specialised, so that kernels are not recompiled for every number of new positions or pieces.
_SIZES = ["num_new", "num_seen", "num_known", "num_pieces"]


@triton.jit(do_not_specialize=_SIZES)
def _look_at_piece(
    heads, keys, values, starts, firsts, cos, sin, attended, tops, totals, sums, row_stride, head_stride,
    position_stride, num_new, num_seen, num_known, piece_tokens, num_pieces, reach, scale, NUM_KEY_HEADS: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, NEW: tl.constexpr, SIZE: tl.constexpr, SIZE_UP: tl.constexpr,
    BLOCK: tl.constexpr, HAS_FIRSTS: tl.constexpr, IS_ALONE: tl.constexpr
):  # fmt: skip
    """Attention of one key head's query rows to one piece. Programs `[B, M, C]`."""
    row, head, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + row)
    # A padding row starts beyond `num_seen`: it attends to nothing.
    end = tl.where(start < num_seen, tl.minimum(start + num_new, num_seen), 0)
    oldest = start + 1 - reach
    if HAS_FIRSTS:
        oldest = tl.maximum(oldest, tl.load(firsts + row))
    begin = tl.maximum(piece * piece_tokens, oldest)
    stop = tl.minimum((piece + 1) * piece_tokens, end)
    p, d, l_first = tl.arange(0, ROWS), tl.arange(0, SIZE_UP), tl.arange(0, BLOCK)
    swapped_d = (d + SIZE // 2) % SIZE
    is_within = (d < SIZE)[None, :]
    of_row, cached = heads + row * num_new * ((GROUP + 2) * NUM_KEY_HEADS * SIZE), row.to(tl.int64) * row_stride
    cached += head * head_stride
    # Write the new positions that lie in this piece before it is read.
    new = tl.arange(0, NEW)
    kept = (start + new).to(tl.int64)
    is_kept = ((new < num_new) & (kept >= piece * piece_tokens) & (kept < stop))[:, None] & is_within
    angle = tl.minimum(kept, num_known - 1)[:, None] * SIZE + d[None, :]  # padding may lie beyond the known positions
    key_head = of_row + (new * ((GROUP + 2) * NUM_KEY_HEADS) + GROUP * NUM_KEY_HEADS + head)[:, None] * SIZE
    new_key = tl.load(key_head + d[None, :], mask=is_kept, other=0.0)
    new_key = _turned(
        new_key, tl.load(key_head + swapped_d[None, :], mask=is_kept, other=0.0), angle, cos, sin, is_kept
    )
    new_value = tl.load(key_head + NUM_KEY_HEADS * SIZE + d[None, :], mask=is_kept, other=0.0)
    place = cached + kept[:, None] * position_stride + d[None, :]
    tl.store(keys + place, new_key, mask=is_kept)
    tl.store(values + place, new_value, mask=is_kept)
    num_query_rows = num_new * GROUP
    position = start + p // GROUP
    is_query = (p < num_query_rows)[:, None] & is_within
    query_head = of_row + ((p // GROUP) * ((GROUP + 2) * NUM_KEY_HEADS) + head * GROUP + p % GROUP)[:, None] * SIZE
    angle = tl.minimum(position, num_known - 1)[:, None] * SIZE + d[None, :]
    query = tl.load(query_head + d[None, :], mask=is_query, other=0.0)
    query = _turned(
        query, tl.load(query_head + swapped_d[None, :], mask=is_query, other=0.0), angle, cos, sin, is_query
    )
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sum_ = tl.zeros([ROWS, SIZE_UP], tl.float32)
    tl.debug_barrier()  # makes what this program's other threads have written visible
    for first in range(begin, stop, BLOCK):
        l = first + l_first  # noqa: E741 - L is a position, as in the list of shapes
        entry = cached + l[:, None] * position_stride + d[None, :]
        is_entry = (l < stop)[:, None] & is_within
        key = tl.load(keys + entry, mask=is_entry, other=0.0)
        value = tl.load(values + entry, mask=is_entry, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        looks = (l < stop)[None, :] & (l[None, :] <= position[:, None]) & (l[None, :] > position[:, None] - reach)
        score = tl.where(looks, score, -float("inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)
        weight = tl.exp2(score - shift[:, None])
        faded = tl.exp2(top - shift)
        total = total * faded + tl.sum(weight, 1)
        sum_ = sum_ * faded[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        top = new_top
    if IS_ALONE:
        sum_ = sum_ / tl.where(total == 0.0, 1.0, total)[:, None]
        token_head = (row * num_new + p // GROUP) * (GROUP * NUM_KEY_HEADS) + head * GROUP + p % GROUP
        place = attended + token_head[:, None] * SIZE + d[None, :]
        tl.store(place, sum_.to(attended.dtype.element_ty), mask=is_query)
    else:
        said = ((row * NUM_KEY_HEADS + head) * num_pieces + piece) * num_query_rows + p
        is_said = p < tl.where(begin < stop, num_query_rows, 0)
        tl.store(tops + said, top, mask=is_said)
        tl.store(totals + said, total, mask=is_said)
        tl.store(sums + said[:, None] * SIZE + d[None, :], sum_, mask=is_said[:, None] & is_within)


@triton.jit(do_not_specialize=_SIZES)
def _weigh_pieces(
    starts, firsts, attended, tops, totals, sums, num_new, num_seen, piece_tokens, num_pieces, reach,
    NUM_KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, SIZE_UP: tl.constexpr, PIECES: tl.constexpr,
    HAS_FIRSTS: tl.constexpr
):  # fmt: skip
    """Combine all pieces of one query row. Programs `[B, M, P]`."""
    row, head, p = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + row)
    end = tl.where(start < num_seen, tl.minimum(start + num_new, num_seen), 0)
    oldest = start + 1 - reach
    if HAS_FIRSTS:
        oldest = tl.maximum(oldest, tl.load(firsts + row))
    c, d = tl.arange(0, PIECES), tl.arange(0, SIZE_UP)
    is_within = d < SIZE
    # The pieces that were not empty, by the same bounds as in `_look_at_piece`.
    begin = tl.maximum(c * piece_tokens, oldest)
    is_said = begin < tl.minimum((c + 1) * piece_tokens, end)
    said = ((row * NUM_KEY_HEADS + head) * num_pieces + c) * (num_new * GROUP) + p
    top = tl.load(tops + said, mask=is_said, other=-float("inf"))
    best = tl.max(top, 0)
    weight = tl.exp2(top - tl.where(best == -float("inf"), 0.0, best))
    total = tl.sum(weight * tl.load(totals + said, mask=is_said, other=0.0), 0)
    sum_ = tl.load(sums + said[:, None] * SIZE + d[None, :], mask=is_said[:, None] & is_within[None, :], other=0.0)
    mean = tl.sum(weight[:, None] * sum_, 0) / tl.where(total == 0.0, 1.0, total)
    token_head = (row * num_new + p // GROUP) * (GROUP * NUM_KEY_HEADS) + head * GROUP + p % GROUP
    tl.store(attended + token_head * SIZE + d, mean.to(attended.dtype.element_ty), mask=is_within)


def look_in_pieces(
    heads_BQXD: Tensor,
    keys_BMLD: Tensor,
    values_BMLD: Tensor,
    starts_B: Tensor,
    cos_ED: Tensor,
    sin_ED: Tensor,
    *,
    num_heads: int,
    scale: float,
    reach: int | None,
    firsts_B: Tensor | None = None,
) -> Tensor:
    """The attention's result, `[B * Q, N * D]`; also writes the new positions' keys and values to the cache.

    Args:
        heads_BQXD: projected queries, keys and values of the new positions, contiguous, before rotary embedding.
        keys_BMLD: the cache's keys; no row is read or written beyond L.
        values_BMLD: the cache's values, with the same strides.
        starts_B: each row's first new position; a row that starts beyond L attends to nothing and yields zeros.
        cos_ED: cosines by position; positions beyond E use the last one.
        sin_ED: signed sines by position.
        num_heads: N.
        scale: of the scores.
        reach: how many positions the attention spans, the query's own included; None: all.
        firsts_B: each row's first position that may be attended to; None: 0.
    """
    num_rows, num_new, _, size = heads_BQXD.shape
    num_key_heads, num_seen = keys_BMLD.shape[1:3]
    group = num_heads // num_key_heads
    num_pieces = -(-ENOUGH_PROGRAMS // (num_rows * num_key_heads))
    num_pieces = max(min(num_pieces, -(-num_seen // _SHORTEST_PIECE)), 1)
    query_rows = _tile(num_new * group)
    block = _BLOCK if query_rows < _MANY_ROWS else _BLOCK_OF_MANY
    piece_tokens = block * -(-num_seen // (block * num_pieces))
    attended = heads_BQXD.new_empty(num_rows * num_new, num_heads * size)
    said = torch.empty(num_rows, num_key_heads, num_pieces, num_new * group, device=heads_BQXD.device)
    is_alone = num_pieces == 1
    tops, totals, sums = (said, said, said) if is_alone else (
        said, torch.empty_like(said), said.new_empty(*said.shape, size)
    )  # fmt: skip
    reach = _FAR if reach is None else reach
    firsts = starts_B if firsts_B is None else firsts_B
    sizes = {
        "NUM_KEY_HEADS": num_key_heads, "GROUP": group, "SIZE": size, "SIZE_UP": _tile(size),
        "HAS_FIRSTS": firsts_B is not None,
    }  # fmt: skip
    row_stride, head_stride, position_stride, _ = keys_BMLD.stride()
    _look_at_piece[(num_rows, num_key_heads, num_pieces)](
        heads_BQXD, keys_BMLD, values_BMLD, starts_B, firsts, cos_ED, sin_ED, attended, tops, totals, sums, row_stride,
        head_stride, position_stride, num_new, num_seen, len(cos_ED), piece_tokens, num_pieces, reach,
        scale * math.log2(math.e), ROWS=query_rows, NEW=max(triton.next_power_of_2(num_new), _FEWEST_NEW), BLOCK=block,
        IS_ALONE=is_alone, num_stages=_NUM_STAGES, **sizes,
    )  # fmt: skip
    if not is_alone:
        _weigh_pieces[(num_rows, num_key_heads, num_new * group)](
            starts_B, firsts, attended, tops, totals, sums, num_new, num_seen, piece_tokens, num_pieces, reach,
            PIECES=triton.next_power_of_2(num_pieces), num_warps=1, **sizes,
        )  # fmt: skip
    return attended


def _tile(size: int) -> int:
    """The side of a tile that holds `size` elements."""
    return max(1 << (size - 1).bit_length(), _SMALLEST_TILE)
