"""The target's most likely tokens at committed positions, taken for all rows at once.

Shapes: B rows, Q positions, N committed positions, V vocabulary, K most likely.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.models.compiled import logits as compiled
from osd.models.compiled.logits import can_look_through
from osd.models.transfer import arrival, download, upload
from osd.types import TokenLogprob

_CHUNK_TOKENS = 64


class TopLogprobs(NamedTuple):
    """The target's own log-probabilities at one row's N positions, before temperature and filters; on the CPU."""

    chosen_N: Tensor
    """Of the committed tokens."""
    ids_NK: Tensor
    """int32, best first."""
    logprobs_NK: Tensor
    wait: Callable[[], None]
    """To be called before the tensors are read: they may still be on their way from the device."""

    def cut(self, num_tokens: int, top_k: int) -> TopLogprobs:
        """Of the first tokens only, and no more than `top_k` of the most likely."""
        return TopLogprobs(
            self.chosen_N[:num_tokens],
            self.ids_NK[:num_tokens, :top_k],
            self.logprobs_NK[:num_tokens, :top_k],
            self.wait,
        )

    def for_client(self, tokens: Sequence[int]) -> tuple[TokenLogprob, ...]:
        """As a delta carries them."""
        self.wait()
        rows = zip(tokens, self.chosen_N.tolist(), self.ids_NK.tolist(), self.logprobs_NK.tolist(), strict=True)
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
    device, counts = logits_BQV.device, [len(one) for one in tokens]
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    positions = [position for count in counts for position in range(count)]
    committed = [token for one in tokens for token in one]
    places = [row * logits_BQV.shape[1] + position for row, position in zip(rows, positions, strict=True)]
    places_N, chosen_N = upload([places, committed], device)
    logits_RV, top_k = logits_BQV.flatten(0, 1), min(top_k, logits_BQV.shape[-1])
    if can_look_through(logits_RV):
        on_device = compiled.top_logprobs(logits_RV, places_N.numpy(), chosen_N, top_k)
    else:
        logprobs_NV = torch.log_softmax(logits_RV[places_N], dim=-1, dtype=torch.float32)
        top_NK, ids_NK = _greatest(logprobs_NV, top_k)
        on_device = logprobs_NV.gather(1, chosen_N[:, None])[:, 0], ids_NK.int(), top_NK
    chosen, ids, logprobs = (torch.split(download(one), counts) for one in on_device)
    wait = arrival(device)
    return [TopLogprobs(*row, wait) for row in zip(chosen, ids, logprobs, strict=True)]


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
