"""What the compiled stack of layers is called with; numba takes named tuples of arrays and numbers as they are.

Shapes: A layers, R rows (B rows of the cache with Q new positions each), H hidden size, I the MLP's, N query heads,
M key/value heads, X = N + 2M, Y = 2M, D head size, L positions, S slots; of a drafter K steps, R reduced vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

COUNTERS = 8
"""int64 that a phase's tasks are counted in (`osd.kernels.cpu.sharing`): a cache line."""
LAYER_PHASES = 8
CHAIN_PHASES = 5
"""Of a step, round its layers."""


class Stack(NamedTuple):
    """What is the same for every pass. Weights are given by the address of their tiles."""

    qkv_A: Array
    attention_out_A: Array
    gate_up_A: Array
    down_A: Array
    bits: int
    """Of a code (`osd.kernels.cpu.products.codes`); 0 where the tiles hold weights."""
    norms_A2H: Array
    """Before attention, before the MLP."""
    head_norms_A2D: Array
    """Of queries, of keys; `[A, 2, 0]` where the model has none."""
    final_norm_H: Array
    eps: np.float32
    cos_LD: Array
    sin_LD: Array
    scale: np.float32
    reaches_A: Array
    """How many positions back a query looks, with its own."""
    num_heads: int
    """N."""
    gate_size: int
    """I."""
    num_phases: int
    """Of all layers, and of the norm that follows them."""
    num_elements: int
    """Of a row's scratch, beside what goes in and what comes out."""
    keys_ASMCKW: Array
    """See `osd.kernels.cpu.tiled_cache`."""
    values_ASMHTW: Array


class Span(NamedTuple):
    """Which positions a pass reads."""

    slots_B: Array
    """Each row's place in the cache."""
    starts_B: Array
    firsts_B: Array
    """The first position that may be looked at."""
    num_new: int


class Scratch(NamedTuple):
    """What a pass writes: `x_RH` is the embedding at first, and in the end what comes out of the last layer."""

    x_RH: Array
    normed_RH: Array
    heads_RP: Array
    """P = X * D; the next is the same memory, head by head."""
    heads_RXD: Array
    attended_RP: Array
    """P = N * D; likewise."""
    attended_RND: Array
    gated_RI: Array


class Chain(NamedTuple):
    """What a drafter has round its layers; matrices are given by the address of their tiles, of as many bits."""

    embedding_VH: Array
    """The target's, bfloat16."""
    input_norms_2H: Array
    """Of embeddings, of hidden states."""
    fuse: int
    head: int
    vocab_ids_R: Array
    """The target's id of each token the head knows."""


class Known(NamedTuple):
    """What the first step of a chain reads; T entries are new there, in the others one."""

    tokens_SL: Array
    hidden_SLH: Array
    slots_B: Array
    """Each row's place in the drafter's cache."""
    starts_B: Array
    """Each row's first new entry."""
    counts_B: Array
    """How many of the T are a row's own."""
    firsts_B: Array
    """The first entry that may be looked at."""
    num_new: int
    """T."""


def chain_elements(stack: Stack, chain: Chain, known: Known) -> int:
    """Of a round's scratch: a first and a later pass's, and what steps leave for one another."""
    num_rows, size = len(known.starts_B), chain.embedding_VH.shape[1]
    num_read = num_rows * known.num_new
    passes = (num_read + num_rows) * (2 * size + stack.num_elements)
    total: int = passes + num_read * 2 * size + num_rows * (size + len(chain.vocab_ids_R))
    return total


class Shapes(NamedTuple):
    """How rows' distributions are shaped (`osd.verify.shaping`)."""

    temperature_B: Array
    min_p_B: Array
    top_k_B: Array
    """int64; the vocabulary's size, or more, where there is no such filter."""
    top_p_B: Array


class Choice(NamedTuple):
    """What a chain's rows choose, and how."""

    ids_KB: Array
    """The target's ids of the tokens chosen are written here."""
    greedy_B: Array
    """bool; `[0]` where all rows are, and nothing of the rest is read."""
    uniform_BK: Array
    probs_BKV: Array
    """The distributions drawn from are written here, over the target's vocabulary; tokens the drafter does not know
    are left as they are."""


class Trial(NamedTuple):
    """What proposals of sampled rows are judged by."""

    rows_S: Array
    """Of the logits and the proposal."""
    num_positions: int
    """Of a row of the logits."""
    best_BQ: Array
    """The index of each greatest logit, int64."""
    lengths_S: Array
    proposed_BK: Array
    draft_probs_BKV: Array
    uniform_SQ: Array
    """A test for each proposed token, then the draw of what follows."""
    verdicts_S2: Array
    """How many are kept, and the token that follows; int64."""
    is_blockwise: bool
    """By block verification, else token by token."""
    is_drawn: bool
    """Whether the proposed tokens were drawn from `draft_probs_BKV`. Else each was its drafter's only candidate, of
    probability 1, and there are no such distributions."""


class Kept(NamedTuple):
    """What a chain's steps leave for one another."""

    feature_BH: Array
    both_RF: Array
    """A pass's inputs, F = 2H: embedding, hidden state."""
    logits_BR: Array


NONE: Array = np.empty(0, np.int64)


class Look(NamedTuple):
    """What is asked of a pass's logits at N places: the K greatest; where tokens are chosen, as log-probabilities."""

    places_N: Array
    chosen_ids_N: Array
    """`[0]` where none are chosen."""
    ids_NK: Array
    values_NK: Array
    chosen_N: Array


def look_at(places_N: Array, chosen_ids_N: Array, top_k: int) -> Look:
    """With room for the answers; places and chosen are int64."""
    return Look(
        places_N=places_N,
        chosen_ids_N=chosen_ids_N,
        ids_NK=np.empty((len(places_N), top_k), np.int32),
        values_NK=np.empty((len(places_N), top_k), np.float32),
        chosen_N=np.empty(len(chosen_ids_N), np.float32),
    )
