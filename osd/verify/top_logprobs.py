"""The target's most likely tokens at committed positions, taken for all rows at once.

Shapes: B rows, Q positions, N committed positions, V vocabulary, K most likely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from osd.kernels.cpu.arguments import Array
from osd.kernels.cpu.verdicts import logits as compiled
from osd.machine.transfer import arrival, download, has_arrived, upload
from osd.models.pass_output import Logits
from osd.records.query import TokenLogprob

_CHUNK_TOKENS = 64


class _Round(NamedTuple):
    """Of a whole round's N committed positions, row after row."""

    chosen_N: Tensor | Array
    ids_NK: Tensor | Array
    logprobs_NK: Tensor | Array
    wait: Callable[[], None]
    """To be called before the rest is read: it may still be on its way from the device."""


class TopLogprobs(NamedTuple):
    """The target's own log-probabilities at one row's N positions, before temperature and filters; on the CPU.

    A place in the round's tensors: they are cut only when they are read, which for outcomes is on another thread.
    """

    of_round: _Round
    start: int
    stop: int
    top_k: int

    def cut(self, num_tokens: int, top_k: int) -> TopLogprobs:
        """Of the first tokens only, and no more than `top_k` of the most likely."""
        stop = min(self.start + num_tokens, self.stop)
        if stop == self.stop and top_k >= self.top_k:
            return self
        return TopLogprobs(self.of_round, self.start, stop, min(top_k, self.top_k))

    def read(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the committed, `[N]`; the most likely, `[N, K]` int32, best first; and theirs."""
        whole, here = self.of_round, slice(self.start, self.stop)
        whole.wait()
        of_row = whole.chosen_N[here], whole.ids_NK[here, : self.top_k], whole.logprobs_NK[here, : self.top_k]
        chosen_N, ids_NK, logprobs_NK = (torch.as_tensor(one) for one in of_row)
        return chosen_N, ids_NK, logprobs_NK

    def for_client(self, tokens: Sequence[int]) -> tuple[TokenLogprob, ...]:
        """As a delta carries them."""
        rows = zip(tokens, *(one.tolist() for one in self.read()), strict=True)
        return tuple(
            TokenLogprob(token, logprob, tuple(zip(ids, values, strict=True))) for token, logprob, ids, values in rows
        )


def wanted_top_logprobs(
    logits: Logits, tokens: Sequence[Sequence[int]], wanted: Sequence[int]
) -> Sequence[TopLogprobs | None]:
    """By row, at its committed positions; None for every row where no row wants any.

    Args:
        logits: of every position.
        tokens: what each row commits.
        wanted: how many log-probabilities a row's outcome or client wants; 0: none.
    """
    looked_at = [one if num else [] for one, num in zip(tokens, wanted, strict=True)]
    return top_logprobs(logits, looked_at, max(wanted)) if any(looked_at) else [None] * len(tokens)


def top_logprobs(logits: Logits, tokens: Sequence[Sequence[int]], top_k: int) -> list[TopLogprobs]:
    """By row, at its first `len(tokens[row])` positions: one operation each over all of them.

    Args:
        logits: of every position.
        tokens: what each row commits; a row whose log-probabilities nobody wants commits nothing here.
        top_k: how many; at most V.
    """
    num_positions, top_k = logits.num_positions, min(top_k, logits.vocab_tokens)
    places = [row * num_positions + position for row, one in enumerate(tokens) for position in range(len(one))]
    committed = [token for one in tokens for token in one]
    of_round = _look(logits, places, committed, top_k)
    ends = list(accumulate((len(one) for one in tokens), initial=0))
    return [TopLogprobs(of_round, start, stop, top_k) for start, stop in pairwise(ends)]


def _look(logits: Logits, places: list[int], chosen: list[int], top_k: int) -> _Round:
    if logits.bits_RV is not None:
        found = compiled.top_logprobs(logits.bits_RV, np.array(places, np.int64), np.array(chosen, np.int64), top_k)
        return _Round(*found, has_arrived)
    logits_RV = logits.tensor_BQV.flatten(0, 1)
    rows_N, ids_N = upload([places, chosen], logits_RV.device)
    logprobs_NV = torch.log_softmax(logits_RV[rows_N], dim=-1, dtype=torch.float32)
    top_NK, ids_NK = _greatest(logprobs_NV, top_k)
    chosen_N = logprobs_NV.gather(1, ids_N[:, None])[:, 0]
    return _Round(download(chosen_N), download(ids_NK.int()), download(top_NK), arrival(logits_RV.device))


def _greatest(values_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The greatest values of each row and their indices, best first, `[N, K]` each; what `topk` gives, but faster.

    None of the K greatest lies outside the K chunks whose own greatest are greatest, so only those are looked through.
    """
    chunks_NCW = F.pad(values_NV, (0, -values_NV.shape[-1] % _CHUNK_TOKENS), value=-torch.inf).view(
        len(values_NV), -1, _CHUNK_TOKENS
    )
    if chunks_NCW.shape[1] <= 2 * count:
        top = values_NV.topk(count, dim=-1)
        return top.values, top.indices
    chunk_NK = chunks_NCW.amax(dim=-1).topk(count, dim=-1).indices
    candidates_NKW = chunks_NCW.gather(1, chunk_NK[:, :, None].expand(-1, -1, _CHUNK_TOKENS))
    top = candidates_NKW.flatten(1).topk(count, dim=-1)
    ids_NK = chunk_NK.gather(1, top.indices // _CHUNK_TOKENS) * _CHUNK_TOKENS + top.indices % _CHUNK_TOKENS
    return top.values, ids_NK
