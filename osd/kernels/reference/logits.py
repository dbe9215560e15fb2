"""The logits of a pass as a tensor: the reference for what back ends answer about logits.

Shapes: R rows, B rows with Q positions each, S sampled rows, N places, V vocabulary, K most likely tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.machine.arrays import tensor
from osd.machine.transfer import arrival, download, upload
from osd.verify.block_rule import reject_blockwise
from osd.verify.logits import Logits, RankedTokens, SampledRows
from osd.verify.shaping import BatchShaping, shape_probs
from osd.verify.token_rule import reject_tokenwise
from osd.verify.verdict import proposed_ids

_CHUNK_TOKENS = 64
MostLikely = Callable[[Tensor], Tensor]
"""The index of the largest logit along the last dimension, the first if there are several."""


def most_likely(logits: Tensor) -> Tensor:
    """See `MostLikely`. Converts to float32 on a CPU, where torch searches it four times as fast as bfloat16."""
    return (logits.float() if logits.device.type == "cpu" else logits).argmax(dim=-1)


class TorchLogits:
    """See `osd.verify.logits.Logits`.

    Args:
        logits_BQV: the logits.
        best_BQ: the index of each largest logit, if the pass computed it.
        find: computes it otherwise.
    """

    def __init__(self, logits_BQV: Tensor, best_BQ: Tensor | None = None, *, find: MostLikely = most_likely) -> None:
        self.tensor_BQV, self._best_BQ, self._find = logits_BQV, best_BQ, find
        self.num_positions: int = logits_BQV.shape[1]
        self.vocab_tokens: int = logits_BQV.shape[2]

    @property
    def best_BQ(self) -> Tensor:  # noqa: N802 - named by its shape
        """See `Logits`."""
        if self._best_BQ is None:
            self._best_BQ = self._find(self.tensor_BQV)
        return self._best_BQ

    @property
    def is_finite_BQ(self) -> Tensor:  # noqa: N802 - named by its shape
        """See `Logits`."""
        return self.tensor_BQV.gather(2, self.best_BQ[:, :, None])[:, :, 0].isfinite()

    def judge(self, sampled: SampledRows) -> Tensor:
        """See `Logits`."""
        logits_BQV, proposal = self.tensor_BQV, sampled.proposal
        device = logits_BQV.device
        index_S, lengths_S = upload([sampled.rows, sampled.lengths], device)
        shaping = BatchShaping.of(sampled.shapes, self.vocab_tokens, device)
        target_probs_SQV = shape_probs(logits_BQV[index_S], shaping)
        proposed_SK = proposed_ids(proposal, logits_BQV)[index_S]
        draft_probs_SKV = None
        if proposal is not None and proposal.draft_probs_BKV is not None:
            draft_probs_SKV = tensor(proposal.draft_probs_BKV)[index_S, : proposed_SK.shape[1]]
        reject = reject_blockwise if sampled.rule == "block" else reject_tokenwise
        uniform_SQ = upload(sampled.uniform_SQ, device)
        return torch.stack(reject(target_probs_SQV, draft_probs_SKV, proposed_SK, lengths_S, uniform_SQ), dim=1)

    def rank(self, places: Sequence[int], chosen: Sequence[int], top_k: int) -> RankedTokens:
        """See `Logits`."""
        logits_RV = self.tensor_BQV.flatten(0, 1)
        rows_N, ids_N = upload([places, chosen], logits_RV.device)
        logprobs_NV = torch.log_softmax(logits_RV[rows_N], dim=-1, dtype=torch.float32)
        top_NK, ids_NK = greatest(logprobs_NV, top_k)
        chosen_N = logprobs_NV.gather(1, ids_N[:, None])[:, 0]
        return RankedTokens(download(chosen_N), download(ids_NK.int()), download(top_NK), arrival(logits_RV.device))

    def replaced(self, logits_BQV: Tensor) -> TorchLogits:
        """See `Logits`."""
        return TorchLogits(logits_BQV, find=self._find)

    def replace_first(self, row: int, other: Logits) -> None:
        """See `Logits`."""
        self.tensor_BQV[row, 0] = other.tensor_BQV[0, 0]
        self._best_BQ = None


def greatest(values_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The K largest values of each row and their indices, largest first, `[N, K]` each; as `topk`, but faster.

    The K largest lie in the K chunks with the largest maxima, so only those are searched.
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
    if values_NV.shape[-1] % _CHUNK_TOKENS:  # with fewer than K values above -inf, padding may be selected
        ids_NK = ids_NK.clamp(max=values_NV.shape[-1] - 1)
    return top.values, ids_NK
