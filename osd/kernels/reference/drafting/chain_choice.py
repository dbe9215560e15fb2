"""Chooses each proposed token of a chain, and stores the distribution that it was drawn from.

Shapes: B rows, K chain steps, R the drafter's vocabulary, V the target's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from osd.kernels.reference.logits import MostLikely, most_likely
from osd.machine.transfer import upload
from osd.records.proposal import DraftBatch
from osd.records.query import SamplingParams
from osd.verify.shaping import BatchShaping, RowShaping, draw, shape_probs, uniforms


def is_sampled(batch: DraftBatch) -> bool:
    """Whether any row that proposes is sampled."""
    return any(length and not params.is_greedy for length, params in zip(batch.lengths, batch.params, strict=True))


def draw_uniforms(batch: DraftBatch, num_steps: int) -> list[list[float]]:
    """Each row's uniform draws, `[B, K]`. Only sampled rows draw, so that a seeded query is independent of others."""
    rows = zip(batch.lengths, batch.params, batch.generators, strict=True)
    return [uniforms(own, 0 if params.is_greedy else length, num_steps) for length, params, own in rows]


class Draws(NamedTuple):
    """What sampled rows need: shaping parameters, and uniform draws from each row's own generator."""

    greedy_B: Tensor
    """bool; greedy rows, whose draws are not used."""
    shaping: BatchShaping
    uniform_BK: Tensor

    @classmethod
    def of(cls, batch: DraftBatch, num_tokens: int, num_rows: int = 0) -> Draws | None:
        """Draw for a batch; None if every row that proposes is greedy.

        Args:
            batch: the rows.
            num_tokens: size of the vocabulary to draw from.
            num_rows: pad with greedy rows up to this number.
        """
        if not is_sampled(batch):
            return None
        added, num_steps, device = num_rows - len(batch.params), max(batch.lengths), batch.tokens_SL.device
        params_B = [*batch.params, *[SamplingParams(temperature=0.0)] * added]
        uniform_BK = draw_uniforms(batch, num_steps) + [[0.0] * num_steps] * added
        return cls(
            greedy_B=upload([params.is_greedy for params in params_B], device),
            shaping=BatchShaping.of([RowShaping.of(params) for params in params_B], num_tokens, device),
            uniform_BK=upload(uniform_BK, device),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, to be inputs of captured work; `like` is the inverse."""
        return (self.greedy_B, self.uniform_BK, *(one for one in self.shaping if one is not None))

    def like(self, tensors: Sequence[Tensor]) -> Draws:
        """A copy with other tensors."""
        greedy_B, uniform_BK, temperature_B11, *rest = tensors
        remaining = iter(rest)
        filters = [None if one is None else next(remaining) for one in self.shaping[1:]]
        return Draws(greedy_B, BatchShaping(temperature_B11, *filters), uniform_BK)


class ChainChoice:
    """Collects one round's proposal: the most likely tokens for greedy rows, draws from the draft distribution else.

    Args:
        num_steps: K.
        draws: for sampled rows; None if there are none.
        vocab_tokens: V.
        vocab_ids_R: the target's id of each token in the drafter's vocabulary; None if it is the target's.
        find: finds the most likely token.
    """

    def __init__(
        self,
        num_steps: int,
        draws: Draws | None,
        vocab_tokens: int,
        vocab_ids_R: Tensor | None = None,
        *,
        find: MostLikely = most_likely,
    ) -> None:
        self._find = find
        self.num_steps, self._draws = num_steps, draws
        self.vocab_tokens, self._vocab_ids_R = vocab_tokens, vocab_ids_R
        self._tokens: list[Tensor] = []
        self._probs: list[Tensor] = []

    def take(self, logits_BR: Tensor) -> Tensor:
        """Choose the next token of every row, `[B]` target ids, and store the distributions of drawn ones."""
        choice_B = self._find(logits_BR)
        if self._draws is not None:
            probs_BR = shape_probs(logits_BR[:, None], self._draws.shaping)[:, 0]
            drawn_B = draw(probs_BR, self._draws.uniform_BK[:, len(self._tokens)])
            choice_B = torch.where(self._draws.greedy_B, choice_B, drawn_B)
            self._probs.append(self._over_vocabulary(probs_BR))
        token_B = choice_B if self._vocab_ids_R is None else self._vocab_ids_R[choice_B]
        self._tokens.append(token_B)
        return token_B

    @property
    def token_ids_BK(self) -> Tensor:  # noqa: N802
        """The tokens chosen so far."""
        return torch.stack(self._tokens, dim=1)

    @property
    def draft_probs_BKV(self) -> Tensor | None:  # noqa: N802
        """The distributions that tokens were drawn from; None if none was drawn."""
        return torch.stack(self._probs, dim=1) if self._probs else None

    def _over_vocabulary(self, probs_BR: Tensor) -> Tensor:
        probs_BV = torch.zeros(probs_BR.shape[0], self.vocab_tokens, device=probs_BR.device)
        if self._vocab_ids_R is None:
            probs_BV[:, : probs_BR.shape[1]] = probs_BR
        else:
            probs_BV[:, self._vocab_ids_R] = probs_BR
        return probs_BV
