"""From logits to the distribution that a query is drawn from, and drawing from it.

Penalties, temperature and filters shape the *target* distribution first; verification then works on what is left, so
none of them is ever applied to a residual. Shapes: Q positions, V vocabulary, N rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from osd.types import SamplingParams

_NUCLEUS_GUESS = 1024
"""Top-p looks at this many tokens first: a full sort of a large vocabulary costs milliseconds."""


def penalise(logits_QV: Tensor, params: SamplingParams, output_ids: list[int], proposed_ids: list[int]) -> Tensor:
    """Presence and frequency penalties (OpenAI API), position by position.

    Position i of the round follows the query's output and the first i proposed tokens, so it counts exactly those.
    """
    if not params.has_penalties:
        return logits_QV
    counts_V = torch.zeros(logits_QV.shape[-1], device=logits_QV.device)
    if output_ids:
        ids = torch.tensor(output_ids, device=logits_QV.device)
        counts_V.index_add_(0, ids, torch.ones(len(output_ids), device=logits_QV.device))
    penalised = []
    for position, logits_V in enumerate(logits_QV.float()):
        if position > 0:
            counts_V[proposed_ids[position - 1]] += 1
        penalised.append(logits_V - params.frequency_penalty * counts_V - params.presence_penalty * (counts_V > 0))
    return torch.stack(penalised)


def shape_probs(logits_QV: Tensor, params: SamplingParams) -> Tensor:
    """The distribution after temperature, min-p, top-k and top-p, float32 `[Q, V]`; temperature must be above 0."""
    probs_QV = torch.softmax(logits_QV.float() / params.temperature, dim=-1)
    if params.min_p > 0.0:
        floor = params.min_p * probs_QV.amax(dim=-1, keepdim=True)
        probs_QV = probs_QV.where(probs_QV >= floor, 0.0)
    if 0 < params.top_k < probs_QV.shape[-1]:
        floor = probs_QV.topk(params.top_k, dim=-1).values[..., -1:]
        probs_QV = probs_QV.where(probs_QV >= floor, 0.0)
    if params.top_p < 1.0:
        probs_QV = _nucleus(probs_QV / probs_QV.sum(dim=-1, keepdim=True), params.top_p)
    return probs_QV / probs_QV.sum(dim=-1, keepdim=True)


def _nucleus(probs_QV: Tensor, top_p: float) -> Tensor:
    """Keep the fewest most likely tokens whose mass reaches `top_p` (Holtzman et al. 2020, arXiv 1904.09751)."""
    size = min(_NUCLEUS_GUESS, probs_QV.shape[-1])
    sorted_probs, order = probs_QV.topk(size, dim=-1)
    if size < probs_QV.shape[-1] and bool((sorted_probs.sum(dim=-1) < top_p).any()):
        sorted_probs, order = probs_QV.sort(dim=-1, descending=True)
    before = sorted_probs.cumsum(dim=-1) - sorted_probs
    return torch.zeros_like(probs_QV).scatter(-1, order, sorted_probs.where(before < top_p, 0.0))


def draw(weights_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """One token a row from unnormalised weights, by inversion: token ids `[N]`.

    Args:
        weights_NV: non-negative, with a positive sum in every row.
        uniform_N: uniform draws in [0, 1).
    """
    cdf_NV = weights_NV.double().cumsum(dim=-1)
    threshold_N1 = uniform_N.double()[:, None] * cdf_NV[:, -1:]
    # right=True finds the first token whose cumulated weight *exceeds* the draw, so its own weight is positive.
    ids_N = torch.searchsorted(cdf_NV, threshold_N1, right=True)[:, 0]
    return ids_N.clamp(max=weights_NV.shape[-1] - 1)
