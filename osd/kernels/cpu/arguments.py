"""Argument types of the compiled functions: named tuples of arrays and numbers, which numba accepts directly.

Shapes: A layers, R rows (B rows of the cache with Q new positions each), H hidden size, I the MLP's, N query heads,
M key/value heads, X = N + 2M, Y = 2M, D head size, L positions, S slots; of a drafter K steps, R reduced vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

COUNTERS = 8
"""int64 counters per phase (see `osd.kernels.cpu.sharing`): one cache line."""
LAYER_PHASES = 8
CHAIN_PHASES = 5
"""Phases of a drafting step in addition to those of its layers."""


class Stack(NamedTuple):
    """What is the same for every pass over a stack of layers. Weights are given as addresses of their tiles."""

    qkv_A: Array
    attention_out_A: Array
    gate_up_A: Array
    down_A: Array
    bits: int
    """Bits of a quantised weight (`osd.kernels.cpu.products.codes`); 0 where the tiles are not quantised."""
    norms_A2H: Array
    """Weights of the norms before attention and before the MLP."""
    head_norms_A2D: Array
    """Weights of the norms of queries and keys; `[A, 2, 0]` where the model has none."""
    final_norm_H: Array
    eps: np.float32
    cos_LD: Array
    sin_LD: Array
    scale: np.float32
    reaches_A: Array
    """How many positions each layer's attention spans, the query's own included."""
    num_heads: int
    """N."""
    gate_size: int
    """I."""
    num_phases: int
    """Phases of all layers and of the norm after them."""
    num_elements: int
    """Elements of scratch memory per row, without the pass's input and output."""
    keys_ASMCKW: Array
    """See `osd.kernels.cpu.tiled_cache`."""
    values_ASMHTW: Array


class Span(NamedTuple):
    """The positions that a pass processes."""

    slots_B: Array
    """Each row's slot in the cache."""
    starts_B: Array
    firsts_B: Array
    """Each row's first position that may be attended to."""
    num_new: int


class Scratch(NamedTuple):
    """What a pass writes: `x_RH` holds the embeddings at first, and at the end the last layer's output."""

    x_RH: Array
    normed_RH: Array
    heads_RP: Array
    """P = X * D; `heads_RXD` is the same memory by head."""
    heads_RXD: Array
    attended_RP: Array
    """P = N * D; `attended_RND` is the same memory by head."""
    attended_RND: Array
    gated_RI: Array


class Chain(NamedTuple):
    """The parts of a drafter outside its layers; matrices are given as addresses of tiles with the stack's `bits`."""

    embedding_VH: Array
    """The target's embedding, in bfloat16."""
    input_norms_2H: Array
    """Weights of the norms of the token embedding and of the hidden state."""
    fuse: int
    head: int
    vocab_ids_R: Array
    """The target's token id for each token of the reduced vocabulary."""


class Known(NamedTuple):
    """The input of a chain's first step, which processes T new entries per row; each later step processes one."""

    tokens_SL: Array
    hidden_SLH: Array
    slots_B: Array
    """Each row's slot in the drafter's cache."""
    starts_B: Array
    """The position of each row's first new entry."""
    counts_B: Array
    """How many of the T entries belong to the row; the rest is padding."""
    firsts_B: Array
    """Each row's first entry that may be attended to."""
    num_new: int
    """T."""


def chain_elements(stack: Stack, chain: Chain, known: Known) -> int:
    """Elements of a round's scratch memory: for the first step's pass, a later one, and the data between steps."""
    num_rows, size = len(known.starts_B), chain.embedding_VH.shape[1]
    num_read = num_rows * known.num_new
    passes = (num_read + num_rows) * (2 * size + stack.num_elements)
    total: int = passes + num_read * 2 * size + num_rows * (size + len(chain.vocab_ids_R))
    return total


class Shapes(NamedTuple):
    """How each row's distribution is shaped: temperature and filters (see `osd.verify.shaping`)."""

    temperature_B: Array
    min_p_B: Array
    top_k_B: Array
    """int64; the vocabulary size or more means no filter."""
    top_p_B: Array


class Choice(NamedTuple):
    """How a chain's rows choose tokens, and where the results go."""

    ids_KB: Array
    """Output: the target's ids of the chosen tokens."""
    greedy_B: Array
    """bool; `[0]` if all rows are greedy, and then the fields below are not read."""
    uniform_BK: Array
    probs_BKV: Array
    """Output: the distributions that tokens were drawn from, over the target's vocabulary; tokens outside the reduced
    vocabulary are not written."""


class Trial(NamedTuple):
    """The input and output of verdicts on sampled rows' proposals."""

    rows_S: Array
    """Indices of the rows, in the logits and in the proposal."""
    num_positions: int
    """Positions per row of the logits."""
    best_BQ: Array
    """The index of the largest logit at each position, int64."""
    lengths_S: Array
    proposed_BK: Array
    draft_probs_BKV: Array
    uniform_SQ: Array
    """Uniform numbers: one for each proposed token's acceptance test, then one to draw the token that follows."""
    verdicts_S2: Array
    """Output, int64: the number of accepted tokens, and the token that follows them."""
    is_blockwise: bool
    """By block verification, else token by token."""
    is_drawn: bool
    """Whether the proposed tokens were drawn from `draft_probs_BKV`. Else each was its drafter's only candidate, of
    probability 1, and there are no such distributions."""


class Kept(NamedTuple):
    """Data that a chain's steps pass on to one another."""

    feature_BH: Array
    both_RF: Array
    """A pass's input, F = 2H: embedding, then hidden state."""
    logits_BR: Array


NONE: Array = np.empty(0, np.int64)


class Ranking(NamedTuple):
    """A query to logits at N places: the K largest, and the log-probabilities of chosen tokens."""

    places_N: Array
    chosen_ids_N: Array
    """Ids of the chosen tokens; `[0]` for none."""
    ids_NK: Array
    values_NK: Array
    chosen_N: Array


def ranking_at(places_N: Array, chosen_ids_N: Array, top_k: int) -> Ranking:
    """A query with memory for the results; places and chosen ids are int64."""
    return Ranking(
        places_N=places_N,
        chosen_ids_N=chosen_ids_N,
        ids_NK=np.empty((len(places_N), top_k), np.int32),
        values_NK=np.empty((len(places_N), top_k), np.float32),
        chosen_N=np.empty(len(chosen_ids_N), np.float32),
    )
