"""Choosing each proposed token of a chain, and keeping the distribution it was drawn from.

Shapes: B rows, K chain steps, R the drafter's vocabulary, V the target's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from osd.proposal import DraftBatch, Proposal
from osd.sampling import draw, shape_probs


class ChainChoice:
    """Collects one round's proposal: argmax for greedy rows, a draw from the drafter's own distribution for others.

    Args:
        batch: the rows.
        vocab_tokens: V.
        vocab_ids_R: the target's id of each token the drafter can say; None when it can say them all.
    """

    def __init__(self, batch: DraftBatch, vocab_tokens: int, vocab_ids_R: Tensor | None = None) -> None:
        self._batch = batch
        self._vocab_tokens = vocab_tokens
        self._vocab_ids_R = vocab_ids_R
        self._sampled_rows = [
            row for row, params in enumerate(batch.params) if not params.is_greedy and batch.lengths[row] > 0
        ]
        self._tokens: list[Tensor] = []
        self._probs: list[Tensor] = []
        self.num_steps = max(batch.lengths)

    def take(self, logits_BR: Tensor) -> Tensor:
        """Choose the next token of every row, `[B]` target ids, and remember its distribution where it was drawn."""
        choice_B = logits_BR.argmax(dim=-1)
        if self._sampled_rows:
            probs_BV = torch.zeros(logits_BR.shape[0], self._vocab_tokens, device=logits_BR.device)
            for row in self._sampled_rows:
                if len(self._tokens) >= self._batch.lengths[row]:
                    continue  # a draw that nobody asked for would make a seeded query depend on its neighbours
                probs_1R = shape_probs(logits_BR[row : row + 1], self._batch.params[row])
                uniform_1 = torch.rand(1, generator=self._batch.generators[row]).to(logits_BR.device)
                choice_B[row] = draw(probs_1R, uniform_1)[0]
                if self._vocab_ids_R is None:
                    probs_BV[row, : probs_1R.shape[1]] = probs_1R[0]
                else:
                    probs_BV[row, self._vocab_ids_R] = probs_1R[0]
            self._probs.append(probs_BV)
        token_B = choice_B if self._vocab_ids_R is None else self._vocab_ids_R[choice_B]
        self._tokens.append(token_B)
        return token_B

    def proposal(self, version: int) -> Proposal:
        """All chosen tokens, with their distributions."""
        return Proposal(
            token_ids_BK=torch.stack(self._tokens, dim=1),
            lengths=self._batch.lengths,
            draft_probs_BKV=torch.stack(self._probs, dim=1) if self._probs else None,
            drafter_version=version,
        )
