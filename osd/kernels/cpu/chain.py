"""A `feature` drafter's whole round: a chain of steps, each reading the token and feature of the one before.

The reference is `osd.kernels.reference.drafting.feature_round.run_chain`. Shapes: those of `osd.kernels.cpu.arguments`.
"""

from __future__ import annotations

import numpy as np

from osd.kernels.cpu.arguments import CHAIN_PHASES, Chain, Choice, Kept, Known, Scratch, Shapes, Span, Stack
from osd.kernels.cpu.bits import Array, compiled, compiled_fast
from osd.kernels.cpu.rows import norm
from osd.kernels.cpu.sharing import Turns, later, shared
from osd.kernels.cpu.stack import project_rows, run_layers, scratch_in
from osd.kernels.cpu.verdicts.highest import highest
from osd.kernels.cpu.verdicts.masses import draw, empty_masses, spread
from osd.kernels.cpu.verdicts.shaping import shape


@compiled
def _pass_in(scratch_E: Array, stack: Stack, num_rows: int, size: int) -> Scratch:
    """The scratch of a pass over `num_rows` rows, at the beginning of the round's scratch."""
    middle, end = num_rows * size, 2 * num_rows * size
    x_RH, normed_RH = scratch_E[:middle].reshape(num_rows, size), scratch_E[middle:end].reshape(num_rows, size)
    return scratch_in(scratch_E[end:], stack, x_RH, normed_RH)


@compiled_fast
def run_chain(
    stack: Stack, chain: Chain, known: Known, choice: Choice, shapes: Shapes, scratch_E: Array, turns: Turns
) -> None:
    """One thread's share of all steps.

    Args:
        stack: the layers.
        chain: the drafter's parts outside the layers.
        known: the first step's input.
        choice: how rows choose tokens, and where the results go.
        shapes: of the distributions that sampled rows draw from.
        scratch_E: scratch memory of `chain_elements` elements.
        turns: the thread's turns, at the first phase.
    """
    num_rows, size = len(known.starts_B), chain.embedding_VH.shape[1]
    num_read, pass_size = num_rows * known.num_new, 2 * size + stack.num_elements
    first = _pass_in(scratch_E, stack, num_read, size)
    then = _pass_in(scratch_E[num_read * pass_size :], stack, num_rows, size)
    scratch_E = scratch_E[(num_read + num_rows) * pass_size :]
    feature, both = num_rows * size, num_rows * size + num_read * 2 * size
    kept = Kept(
        scratch_E[:feature].reshape(num_rows, size),
        scratch_E[feature:both].reshape(num_read, 2 * size),
        scratch_E[both:].reshape(num_rows, len(chain.vocab_ids_R)),
    )
    for step in range(len(choice.ids_KB)):
        num_new, scratch, starts_B = known.num_new, first, known.starts_B
        if step > 0:
            num_new, scratch, starts_B = 1, then, known.starts_B + known.counts_B + (step - 1)
        begin = later(turns, step * (stack.num_phases + CHAIN_PHASES))
        for n in shared(begin, num_rows * num_new):
            _read_in(n, step, stack, chain, known, choice, kept)
        project_rows(chain.fuse, stack.bits, kept.both_RF[: num_rows * num_new], scratch.x_RH, False, later(begin, 1))
        run_layers(stack, Span(known.slots_B, starts_B, known.firsts_B, num_new), scratch, later(begin, 2))
        end = later(begin, 2 + stack.num_phases)
        for b in shared(end, num_rows):
            last = known.counts_B[b] - 1 if step == 0 else 0
            kept.feature_BH[b] = scratch.normed_RH[b * num_new + last]
        project_rows(chain.head, stack.bits, kept.feature_BH, kept.logits_BR, False, later(end, 1))
        for b in shared(later(end, 2), num_rows):
            choice.ids_KB[step, b] = _choose(b, step, kept.logits_BR[b], chain.vocab_ids_R, choice, shapes)


@compiled_fast
def _choose(b: int, step: int, logits_R: Array, vocab_ids_R: Array, choice: Choice, shapes: Shapes) -> int:
    """Choose row b's token of one step: the most likely one, or a draw."""
    index, most = np.empty(1, np.int32), np.empty(1, np.float32)
    highest(logits_R, index, most)
    if len(choice.greedy_B) == 0 or choice.greedy_B[b]:
        return int(vocab_ids_R[index[0]])
    masses, probs_V = empty_masses(len(logits_R)), choice.probs_BKV[b, step]
    share = np.float32(1) / shape(logits_R, most[0], shapes, b, masses)
    spread(masses, share, vocab_ids_R, probs_V)
    return int(vocab_ids_R[draw(masses, choice.uniform_BK[b, step])])


@compiled_fast
def _read_in(n: int, step: int, stack: Stack, chain: Chain, known: Known, choice: Choice, kept: Kept) -> None:
    """Write entry n's input: the next token's embedding beside the hidden state (first step) or the last feature."""
    both_F, size = kept.both_RF[n], kept.feature_BH.shape[1]
    if step == 0:
        b, offset = n // known.num_new, n % known.num_new
        entry = min(known.starts_B[b] + offset, known.tokens_SL.shape[1] - 2)
        token, hidden_H = known.tokens_SL[b, entry + 1], known.hidden_SLH[b, entry]
    else:
        token, hidden_H = choice.ids_KB[step - 1, n], kept.feature_BH[n]
    norm(chain.embedding_VH[token], chain.input_norms_2H[0], stack.eps, both_F[:size])
    norm(hidden_H, chain.input_norms_2H[1], stack.eps, both_F[size:])
