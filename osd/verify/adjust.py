"""Changes to the target's logits that a query asks for: biases, forbidden tokens, penalties for repetition.

They come before temperature and filters, in vLLM's order, and may depend on earlier tokens. Position i of a round
follows the query's output and the first i proposed tokens, so those count as output there.
Shapes: Q positions, K proposed tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from osd.machine.transfer import upload
from osd.records.query import Request, SamplingParams

FORBIDDEN = -1e4
"""Added to the logit of a token that is not to be emitted. Its probability is then exactly 0 in float32, unless a
constraint allows no other token."""


class AdjustedRow(Protocol):
    """What adjustments need of a query (implemented by `osd.engine.sequence.Sequence`)."""

    @property
    def request(self) -> Request:
        """The request, for its prompt and its sampling parameters."""
        ...

    @property
    def output_ids(self) -> Sequence[int]:
        """Its output so far."""
        ...

    @property
    def end_ids(self) -> Collection[int]:
        """Tokens that end its answer."""
        ...


def adjust(logits_QV: Tensor, row: AdjustedRow, proposed_K: Tensor) -> Tensor:
    """The logits of one row after its adjustments, float32.

    Args:
        logits_QV: at its positions; there may be more than K + 1.
        row: the query.
        proposed_K: its proposed tokens.
    """
    params, output_ids = row.request.params, row.output_ids
    logits_QV = logits_QV.float() + _biases(params, logits_QV)
    if params.bad_words or params.min_tokens > len(output_ids):
        proposed = proposed_K.tolist()
        for position, logits_V in enumerate(logits_QV):
            forbidden = _forbidden(row, [*output_ids, *proposed[:position]])
            if forbidden:
                logits_V.index_add_(0, *_at(logits_V, forbidden, FORBIDDEN))
    if params.repetition_penalty != 1.0:
        logits_QV = _less_repetitive(logits_QV, row, proposed_K)
    if params.presence_penalty or params.frequency_penalty:
        logits_QV = _penalised(logits_QV, params, output_ids, proposed_K)
    return logits_QV


def _biases(params: SamplingParams, logits_QV: Tensor) -> Tensor:
    """What is added at every position, `[V]`."""
    bias_V = torch.zeros(logits_QV.shape[1], device=logits_QV.device)
    if params.allowed_token_ids:
        bias_V += FORBIDDEN
        bias_V.index_fill_(0, upload(params.allowed_token_ids, bias_V.device), 0.0)
    if params.logit_bias:
        ids, values = zip(*params.logit_bias, strict=True)
        bias_V.index_add_(0, upload(ids, bias_V.device), upload(values, bias_V.device))
    return bias_V


def _forbidden(row: AdjustedRow, output_ids: Sequence[int]) -> list[int]:
    """Tokens that must not come after this output: ends that are too early, and last tokens of bad words."""
    params = row.request.params
    ends = row.end_ids if len(output_ids) < params.min_tokens else ()
    last = {
        word[-1]
        for word in params.bad_words
        if len(word) <= len(output_ids) + 1 and list(word[:-1]) == list(output_ids[len(output_ids) - len(word) + 1 :])
    }
    return sorted({*ends, *last})


def _at(logits_V: Tensor, ids: Sequence[int], value: float) -> tuple[Tensor, Tensor]:
    return upload(ids, logits_V.device), torch.full((len(ids),), value, device=logits_V.device)


def _less_repetitive(logits_QV: Tensor, row: AdjustedRow, proposed_K: Tensor) -> Tensor:
    """Divide the logits of tokens of prompt and output by the repetition penalty; multiply those that are negative."""
    penalty = row.request.params.repetition_penalty
    is_known_V = torch.zeros(logits_QV.shape[1], dtype=torch.bool, device=logits_QV.device)
    is_known_V.index_fill_(0, upload([*row.request.prompt_ids, *row.output_ids], logits_QV.device), True)
    changed = []
    for position, logits_V in enumerate(logits_QV):
        if 0 < position <= len(proposed_K):
            is_known_V = is_known_V.index_fill(0, proposed_K[position - 1 : position], True)
        weaker_V = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
        changed.append(torch.where(is_known_V, weaker_V, logits_V))
    return torch.stack(changed)


def _penalised(logits_QV: Tensor, params: SamplingParams, output_ids: Sequence[int], proposed_K: Tensor) -> Tensor:
    """Presence and frequency penalties (OpenAI API), for tokens of the output."""
    counts_V = torch.zeros(logits_QV.shape[-1], device=logits_QV.device)
    if output_ids:
        counts_V.index_add_(0, *_at(counts_V, output_ids, 1.0))
    one_1 = counts_V.new_ones(1)
    penalised = []
    for position, logits_V in enumerate(logits_QV):
        if 0 < position <= len(proposed_K):
            counts_V.index_add_(0, proposed_K[position - 1 : position], one_1)
        penalised.append(logits_V - params.frequency_penalty * counts_V - params.presence_penalty * (counts_V > 0))
    return torch.stack(penalised)
