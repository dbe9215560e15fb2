"""From logits to the distribution that a query is drawn from, and drawing from it.

Penalties, temperature and filters shape the *target* distribution first; verification then works on what is left, so
none of them is ever applied to a residual. Shapes: B rows, Q positions, V vocabulary, N rows of draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from osd.machine.transfer import upload
from osd.records.query import SamplingParams

_NUCLEUS_GUESS = 1024
"""On a CPU, top-p looks at this many tokens first: a full sort of a large vocabulary costs milliseconds."""
_ALL = 1 << 62
"""More tokens than any vocabulary has, which int64 can hold."""
_LEAST = 1e-30
"""Of a temperature or a top-p: with either, only the most likely token is left, and float32 can divide by it."""


class Shape(NamedTuple):
    """How one row's distribution is shaped; a filter that it does not have is one that lets all pass."""

    temperature: float
    """1 for greedy rows, of which no distribution is wanted."""
    min_p: float
    top_k: int
    """More than any vocabulary has where there is no such filter."""
    top_p: float

    @classmethod
    def of(cls, params: SamplingParams) -> Shape:
        """In numbers that float32 can divide by."""
        return cls(
            temperature=1.0 if params.is_greedy else max(float(params.temperature), _LEAST),
            min_p=float(params.min_p),
            top_k=min(params.top_k or _ALL, _ALL),
            top_p=max(float(params.top_p), _LEAST),
        )


class Shaping(NamedTuple):
    """Rows' shapes, `[B, 1, 1]` each; a filter that no row has is None."""

    temperature_B11: Tensor
    min_p_B11: Tensor | None
    top_k_B11: Tensor | None
    """int64."""
    top_p_B11: Tensor | None

    @classmethod
    def of(cls, shapes: Sequence[Shape], vocab_tokens: int, device: torch.device) -> Shaping:
        """Of one row each."""
        temperatures, min_ps, top_ks, top_ps = zip(*shapes, strict=True)
        temperature_B11, min_p_B11, top_p_B11 = upload((temperatures, min_ps, top_ps), device)[..., None, None]
        return cls(
            temperature_B11=temperature_B11,
            min_p_B11=min_p_B11 if max(min_ps) > 0.0 else None,
            top_k_B11=upload([min(top_k, vocab_tokens) for top_k in top_ks], device)[:, None, None]
            if min(top_ks) < vocab_tokens
            else None,
            top_p_B11=top_p_B11 if min(top_ps) < 1.0 else None,
        )


def uniforms(generator: Random, num: int, width: int) -> list[float]:
    """So many draws between 0 and 1, neither of them, which float32 holds exactly; then zeros, up to a width."""
    draws = [(generator.getrandbits(23) + 0.5) * 2.0**-23 for _ in range(num)]
    return draws if width == num else draws + [0.0] * (width - num)


def penalise(logits_QV: Tensor, params: SamplingParams, output_ids: Sequence[int], proposed_K: Tensor) -> Tensor:
    """Presence and frequency penalties (OpenAI API) of one row, position by position.

    Position i of the round follows the query's output and the first i proposed tokens, so it counts exactly those.
    """
    counts_V = torch.zeros(logits_QV.shape[-1], device=logits_QV.device)
    if output_ids:
        ids = upload(output_ids, logits_QV.device)
        counts_V.index_add_(0, ids, torch.ones(len(output_ids), device=logits_QV.device))
    one_1 = counts_V.new_ones(1)
    penalised = []
    for position, logits_V in enumerate(logits_QV.float()):
        if 0 < position <= len(proposed_K):
            counts_V.index_add_(0, proposed_K[position - 1 : position], one_1)
        penalised.append(logits_V - params.frequency_penalty * counts_V - params.presence_penalty * (counts_V > 0))
    return torch.stack(penalised)


def shape_probs(logits_BQV: Tensor, shaping: Shaping) -> Tensor:
    """The distribution after temperature, min-p, top-k and top-p, float32 `[B, Q, V]`."""
    probs_BQV = torch.softmax(logits_BQV.float() / shaping.temperature_B11, dim=-1)
    if shaping.min_p_B11 is not None:
        floor = shaping.min_p_B11 * probs_BQV.amax(dim=-1, keepdim=True)
        probs_BQV = probs_BQV.where(probs_BQV >= floor, 0.0)
    if shaping.top_k_B11 is not None:
        index = (shaping.top_k_B11 - 1).expand(*probs_BQV.shape[:2], 1)
        floor = probs_BQV.sort(dim=-1, descending=True).values.gather(-1, index)
        probs_BQV = probs_BQV.where(probs_BQV >= floor, 0.0)
    if shaping.top_p_B11 is not None:
        probs_BQV = _nucleus(probs_BQV / probs_BQV.sum(dim=-1, keepdim=True), shaping.top_p_B11)
    return probs_BQV / probs_BQV.sum(dim=-1, keepdim=True)


def _nucleus(probs_BQV: Tensor, top_p_B11: Tensor) -> Tensor:
    """Keep the fewest most likely tokens whose mass reaches `top_p` (Holtzman et al. 2020, arXiv 1904.09751)."""
    probs_NV = probs_BQV.flatten(0, 1)
    top_p_N1 = top_p_B11.expand(*probs_BQV.shape[:2], 1).flatten(0, 1)
    vocab_tokens = probs_NV.shape[1]
    if probs_NV.device.type != "cpu" or vocab_tokens <= _NUCLEUS_GUESS:
        return _keep_mass(probs_NV, top_p_N1, vocab_tokens).view_as(probs_BQV)
    kept_NV = _keep_mass(probs_NV, top_p_N1, _NUCLEUS_GUESS)
    # A position all of whose guess was kept may need more; elsewhere than on a CPU, asking would wait for the device.
    wide_N = (kept_NV.sum(dim=1, keepdim=True) < top_p_N1)[:, 0]
    if bool(wide_N.any()):
        kept_NV[wide_N] = _keep_mass(probs_NV[wide_N], top_p_N1[wide_N], vocab_tokens)
    return kept_NV.view_as(probs_BQV)


def _keep_mass(probs_NV: Tensor, top_p_N1: Tensor, most: int) -> Tensor:
    """The most likely tokens up to a mass, and no more than `most` of them."""
    sorted_probs, order = probs_NV.sort(dim=1, descending=True) if most == probs_NV.shape[1] else probs_NV.topk(most)
    before = sorted_probs.cumsum(dim=1) - sorted_probs
    return torch.zeros_like(probs_NV).scatter(1, order, sorted_probs.where(before < top_p_N1, 0.0))


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
