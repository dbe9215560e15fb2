"""Attention of few new positions over a long cache, in pieces that are read at once: as far as each row reaches.

Flash-Decoding (Dao, Haziza, Massa and Sizov 2023): the cached positions are cut into pieces, each is looked at by a
program with a running softmax (Milakov and Gimelshein 2018, arXiv 1805.02867), and what they say is weighed together.

Shapes: B rows, Q new positions, N query heads, M key/value heads, G = N / M query heads that share one key head,
P = Q * G query rows of a key head, X = N + 2M, L cached positions, D head size, C pieces.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64
"""Positions that a program looks at in one step."""
_SHORTEST_PIECE = 128
_SMALLEST_TILE = 16
"""That a product of tiles takes."""
_ENOUGH_PROGRAMS = 264
"""Two for each of an H200's 132 multiprocessors: more pieces than that only add to what is weighed together."""
_FAR = 1 << 30


@triton.jit
def _look_at_piece(
    heads, keys, values, starts, attended, tops, totals, sums, row_stride, head_stride, position_stride, num_new,
    num_seen, piece_tokens, num_pieces, reach, scale, NUM_KEY_HEADS: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, SIZE: tl.constexpr, SIZE_UP: tl.constexpr, BLOCK: tl.constexpr, IS_ALONE: tl.constexpr
):  # fmt: skip
    """What one key head's query rows see in one piece: programs `[B, M, C]`."""
    row, head, piece = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + row)
    # A row of padding stands beyond what is seen: it looks at nothing.
    end = tl.where(start < num_seen, tl.minimum(start + num_new, num_seen), 0)
    begin = tl.maximum(piece * piece_tokens, start + 1 - reach)
    stop = tl.minimum((piece + 1) * piece_tokens, end)
    p, d, l_first = tl.arange(0, ROWS), tl.arange(0, SIZE_UP), tl.arange(0, BLOCK)
    num_query_rows = num_new * GROUP
    position = start + p // GROUP
    is_row, is_within = (p < num_query_rows)[:, None], (d < SIZE)[None, :]
    token_head = (row * num_new + p // GROUP) * ((GROUP + 2) * NUM_KEY_HEADS) + head * GROUP + p % GROUP
    query = tl.load(heads + token_head[:, None] * SIZE + d[None, :], mask=is_row & is_within, other=0.0)
    cached = row.to(tl.int64) * row_stride + head * head_stride
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sum_ = tl.zeros([ROWS, SIZE_UP], tl.float32)
    for first in range(begin, stop, BLOCK):
        l = first + l_first  # noqa: E741 - a position, as in the shapes
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
        tl.store(place, sum_.to(attended.dtype.element_ty), mask=is_row & is_within)
    else:
        said = ((row * NUM_KEY_HEADS + head) * num_pieces + piece) * num_query_rows + p
        is_said = p < tl.where(begin < stop, num_query_rows, 0)
        tl.store(tops + said, top, mask=is_said)
        tl.store(totals + said, total, mask=is_said)
        tl.store(sums + said[:, None] * SIZE + d[None, :], sum_, mask=is_said[:, None] & is_within)


@triton.jit
def _weigh_pieces(
    starts, attended, tops, totals, sums, num_new, num_seen, piece_tokens, num_pieces, reach,
    NUM_KEY_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, SIZE_UP: tl.constexpr, PIECES: tl.constexpr
):  # fmt: skip
    """All pieces of one query row together: programs `[B, M, P]`."""
    row, head, p = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    start = tl.load(starts + row)
    end = tl.where(start < num_seen, tl.minimum(start + num_new, num_seen), 0)
    c, d = tl.arange(0, PIECES), tl.arange(0, SIZE_UP)
    is_within = d < SIZE
    # As above: the pieces that had something to say.
    begin = tl.maximum(c * piece_tokens, start + 1 - reach)
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
    *,
    num_heads: int,
    scale: float,
    reach: int | None,
) -> Tensor:
    """What each query looks at, `[B * Q, N * D]`.

    Args:
        heads_BQXD: queries, keys and values of the new positions, contiguous; only the queries are read.
        keys_BMLD: cached, with the new ones; L bounds what is read of any row, the rest is left alone.
        values_BMLD: as the keys, in the same strides.
        starts_B: each row's first new position; a row that starts beyond L looks at nothing, which gives zeros.
        num_heads: N.
        scale: of the scores.
        reach: how many positions back a query looks, with its own; None: all.
    """
    num_rows, num_new, _, size = heads_BQXD.shape
    num_key_heads, num_seen = keys_BMLD.shape[1:3]
    group = num_heads // num_key_heads
    num_pieces = -(-_ENOUGH_PROGRAMS // (num_rows * num_key_heads))
    num_pieces = max(min(num_pieces, -(-num_seen // _SHORTEST_PIECE)), 1)
    piece_tokens = _BLOCK * -(-num_seen // (_BLOCK * num_pieces))
    size_up = _tile(size)
    attended = heads_BQXD.new_empty(num_rows * num_new, num_heads * size)
    said = torch.empty(num_rows, num_key_heads, num_pieces, num_new * group, device=heads_BQXD.device)
    is_alone = num_pieces == 1
    tops, totals, sums = (said, said, said) if is_alone else (
        said, torch.empty_like(said), said.new_empty(*said.shape, size)
    )  # fmt: skip
    reach = _FAR if reach is None else reach
    row_stride, head_stride, position_stride, _ = keys_BMLD.stride()
    _look_at_piece[(num_rows, num_key_heads, num_pieces)](
        heads_BQXD, keys_BMLD, values_BMLD, starts_B, attended, tops, totals, sums, row_stride, head_stride,
        position_stride, num_new, num_seen, piece_tokens, num_pieces, reach, scale * math.log2(math.e),
        NUM_KEY_HEADS=num_key_heads, GROUP=group, ROWS=_tile(num_new * group), SIZE=size, SIZE_UP=size_up, BLOCK=_BLOCK,
        IS_ALONE=is_alone,
    )  # fmt: skip
    if not is_alone:
        _weigh_pieces[(num_rows, num_key_heads, num_new * group)](
            starts_B, attended, tops, totals, sums, num_new, num_seen, piece_tokens, num_pieces, reach,
            NUM_KEY_HEADS=num_key_heads, GROUP=group, SIZE=size, SIZE_UP=size_up,
            PIECES=triton.next_power_of_2(num_pieces), num_warps=1,
        )  # fmt: skip
    return attended


def _tile(size: int) -> int:
    """The side of a tile that holds so many."""
    return max(1 << (size - 1).bit_length(), _SMALLEST_TILE)
