"""The target's most likely tokens at committed positions, taken for all rows at once.

Shapes: B rows, Q positions, N committed positions, V vocabulary, K most likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from osd.types import TokenLogprob


class TopLogprobs(NamedTuple):
    """The target's own log-probabilities at one row's N positions, before temperature and filters."""

    chosen: list[float]
    """Of the committed tokens."""
    ids_NK: Tensor
    """int32, on the CPU, best first."""
    logprobs_NK: Tensor

    def cut(self, num_tokens: int, top_k: int) -> TopLogprobs:
        """Of the first tokens only, and no more than `top_k` of the most likely."""
        return TopLogprobs(
            self.chosen[:num_tokens], self.ids_NK[:num_tokens, :top_k], self.logprobs_NK[:num_tokens, :top_k]
        )

    def for_client(self, tokens: Sequence[int]) -> tuple[TokenLogprob, ...]:
        """As a delta carries them."""
        rows = zip(tokens, self.chosen, self.ids_NK.tolist(), self.logprobs_NK.tolist(), strict=True)
        return tuple(
            TokenLogprob(token, logprob, tuple(zip(ids, values, strict=True))) for token, logprob, ids, values in rows
        )


def top_logprobs(logits_BQV: Tensor, tokens: Sequence[Sequence[int]], top_k: int) -> list[TopLogprobs]:
    """By row, at its first `len(tokens[row])` positions: one operation each over all of them.

    Args:
        logits_BQV: of every position.
        tokens: what each row commits; a row whose log-probabilities nobody wants commits nothing here.
        top_k: how many; at most V.
    """
    counts = [len(one) for one in tokens]
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    positions = [position for count in counts for position in range(count)]
    logits_NV = logits_BQV[rows, positions].float()
    total_N1 = logits_NV.logsumexp(dim=-1, keepdim=True)
    chosen_N1 = torch.tensor([token for one in tokens for token in one], device=logits_NV.device)[:, None]
    chosen = (logits_NV.gather(1, chosen_N1) - total_N1)[:, 0].tolist()
    top = logits_NV.topk(min(top_k, logits_NV.shape[-1]), dim=-1)
    ids, logprobs = torch.split(top.indices.int().cpu(), counts), torch.split((top.values - total_N1).cpu(), counts)
    ends = torch.tensor(counts).cumsum(0).tolist()
    return [
        TopLogprobs(chosen[end - count : end], *arrays)
        for end, count, *arrays in zip(ends, counts, ids, logprobs, strict=True)
    ]
