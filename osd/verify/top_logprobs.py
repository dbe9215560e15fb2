"""The target's most likely tokens at committed positions and those after them, computed for all rows at once.

Shapes: B rows, Q positions, N positions of one row, V vocabulary, K most likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from osd.records.query import TokenLogprob
from osd.verify.logits import Logits, RankedTokens


class NamedTokens(NamedTuple):
    """Log-probabilities of tokens that the client named, at a row's positions."""

    ids: Sequence[int]
    logprobs_NC: Tensor
    """Log-probabilities of C tokens at each of N positions."""


class TopLogprobs(NamedTuple):
    """The target's log-probabilities at one row's N positions, before temperature and filters; on the CPU.

    It refers to the round's tensors, which are only sliced when read; for outcomes that is on another thread.
    """

    of_round: RankedTokens
    start: int
    stop: int
    top_k: int
    named: NamedTokens | None = None
    """What the client is told of instead of the most likely tokens."""

    def cut(self, num_tokens: int, top_k: int) -> TopLogprobs:
        """The first `num_tokens` positions, with at most `top_k` of the most likely tokens."""
        stop = min(self.start + num_tokens, self.stop)
        if stop == self.stop and top_k >= self.top_k:
            return self
        return self._replace(stop=stop, top_k=min(top_k, self.top_k))

    def following(self, num_positions: int, top_k: int) -> TopLogprobs:
        """The next positions of the row, which the round must have ranked; their "committed" tokens are undefined."""
        return TopLogprobs(self.of_round, self.stop, self.stop + num_positions, min(top_k, self.top_k))

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the committed tokens, `[N]`; the most likely tokens, `[N, K]` int32, and theirs."""
        whole, here = self.of_round, slice(self.start, self.stop)
        whole.wait()
        of_row = whole.chosen_N[here], whole.ids_NK[here, : self.top_k], whole.logprobs_NK[here, : self.top_k]
        chosen_N, ids_NK, logprobs_NK = (torch.as_tensor(one) for one in of_row)
        return chosen_N, ids_NK, logprobs_NK

    def for_client(self, tokens: Sequence[int]) -> tuple[TokenLogprob, ...]:
        """In the form of a delta."""
        chosen_N, ids_NK, logprobs_NK = (one.tolist() for one in self.read())
        if self.named is not None:
            order = self.named.logprobs_NC.argsort(dim=1, descending=True)[: len(tokens)]
            ids_NK = torch.tensor(self.named.ids)[order].tolist()
            logprobs_NK = self.named.logprobs_NC[: len(tokens)].gather(1, order).tolist()
        rows = zip(tokens, chosen_N, ids_NK, logprobs_NK, strict=True)
        return tuple(
            TokenLogprob(token, logprob, tuple(zip(ids, values, strict=True))) for token, logprob, ids, values in rows
        )


def wanted_top_logprobs(
    logits: Logits,
    tokens: Sequence[Sequence[int]],
    wanted: Sequence[int],
    num_further: Sequence[int] = (),
    named: Sequence[Sequence[int]] = (),
) -> Sequence[TopLogprobs | None]:
    """For each row, its log-probabilities at committed positions; None for all rows if no row wants any.

    Args:
        logits: of every position.
        tokens: the committed tokens of each row.
        wanted: number of log-probabilities that each row's outcome or client wants; 0: none.
        num_further: see `top_logprobs`; 0 for a row that wants none.
        named: tokens that each row's client wants told of instead of the most likely ones; empty: none for any row.
    """
    looked_at = [one if num else [] for one, num in zip(tokens, wanted, strict=True)]
    if not any(looked_at):
        return [None] * len(tokens)
    tops = top_logprobs(logits, looked_at, max(wanted), num_further)
    for row, ids in enumerate(named):
        if ids and looked_at[row]:
            logits_NV = logits.tensor_BQV[row, : len(looked_at[row])].float()
            logprobs_NC = logits_NV[:, list(ids)] - logits_NV.logsumexp(dim=1, keepdim=True)
            tops[row] = tops[row]._replace(named=NamedTokens(ids, logprobs_NC.cpu()))
    return tops


def top_logprobs(
    logits: Logits, tokens: Sequence[Sequence[int]], top_k: int, num_further: Sequence[int] = ()
) -> list[TopLogprobs]:
    """For each row, its log-probabilities at its first `len(tokens[row])` positions, computed together.

    Args:
        logits: of every position.
        tokens: the committed tokens of each row; empty for a row that wants no log-probabilities.
        top_k: number of most likely tokens, at most V.
        num_further: for each row, how many positions after those are ranked as well, for `following`; empty: none.
    """
    num_positions, top_k = logits.num_positions, min(top_k, logits.vocab_tokens)
    nums = num_further or [0] * len(tokens)
    chosen = [[*one, *[0] * num] for one, num in zip(tokens, nums, strict=True)]
    places = [row * num_positions + position for row, one in enumerate(chosen) for position in range(len(one))]
    of_round = logits.rank(places, [token for one in chosen for token in one], top_k)
    ends = list(accumulate((len(one) for one in chosen), initial=0))
    return [
        TopLogprobs(of_round, start, stop - num, top_k) for (start, stop), num in zip(pairwise(ends), nums, strict=True)
    ]
