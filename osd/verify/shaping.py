"""From logits to the distribution that tokens are drawn from, and drawing from it.

Temperature and filters, and before them what `osd.verify.adjust` does to logits, are applied to the *target's*
distribution before verification, so none is ever applied to a residual.
Shapes: B rows, Q positions, V vocabulary, N rows of draws.
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
"""On a CPU, top-p first looks at this many tokens, since sorting a large vocabulary costs milliseconds."""
_ALL = 1 << 62
"""A top-k larger than any vocabulary, within int64."""
_LEAST = 1e-30
"""Lower bound of temperature and top-p: it leaves only the most likely token, and float32 can divide by it."""


class RowShaping(NamedTuple):
    """One row's shaping parameters; a filter that the row does not use has a value that passes everything."""

    temperature: float
    """1 for greedy rows, whose distribution is not used."""
    min_p: float
    top_k: int
    """Larger than any vocabulary if there is no such filter."""
    top_p: float

    @classmethod
    def of(cls, params: SamplingParams) -> RowShaping:
        """From sampling parameters, limited to values that float32 can divide by."""
        return cls(
            temperature=1.0 if params.is_greedy else max(float(params.temperature), _LEAST),
            min_p=float(params.min_p),
            top_k=min(params.top_k or _ALL, _ALL),
            top_p=max(float(params.top_p), _LEAST),
        )


class BatchShaping(NamedTuple):
    """The shaping parameters of several rows, `[B, 1, 1]` each; a filter that no row uses is None."""

    temperature_B11: Tensor
    min_p_B11: Tensor | None
    top_k_B11: Tensor | None
    """int64."""
    top_p_B11: Tensor | None

    @classmethod
    def of(cls, shapes: Sequence[RowShaping], vocab_tokens: int, device: torch.device) -> BatchShaping:
        """From one `RowShaping` per row."""
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
    """`num` draws strictly between 0 and 1, exact in float32, followed by zeros up to `width`."""
    draws = [(generator.getrandbits(23) + 0.5) * 2.0**-23 for _ in range(num)]
    return draws if width == num else draws + [0.0] * (width - num)


def shape_probs(logits_BQV: Tensor, shaping: BatchShaping) -> Tensor:
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
    """Keep the smallest set of likeliest tokens whose mass reaches `top_p` (Holtzman et al. 2020, arXiv 1904.09751)."""
    probs_NV = probs_BQV.flatten(0, 1)
    top_p_N1 = top_p_B11.expand(*probs_BQV.shape[:2], 1).flatten(0, 1)
    vocab_tokens = probs_NV.shape[1]
    if probs_NV.device.type != "cpu" or vocab_tokens <= _NUCLEUS_GUESS:
        return _keep_mass(probs_NV, top_p_N1, vocab_tokens).view_as(probs_BQV)
    kept_NV = _keep_mass(probs_NV, top_p_N1, _NUCLEUS_GUESS)
    # Where those tokens do not reach top_p, take the whole row. On other devices this check would be a synchronisation.
    wide_N = (kept_NV.sum(dim=1, keepdim=True) < top_p_N1)[:, 0]
    if bool(wide_N.any()):
        kept_NV[wide_N] = _keep_mass(probs_NV[wide_N], top_p_N1[wide_N], vocab_tokens)
    return kept_NV.view_as(probs_BQV)


def _keep_mass(probs_NV: Tensor, top_p_N1: Tensor, most: int) -> Tensor:
    """Keep the most likely tokens up to a mass, and at most `most` of them."""
    sorted_probs, order = probs_NV.sort(dim=1, descending=True) if most == probs_NV.shape[1] else probs_NV.topk(most)
    before = sorted_probs.cumsum(dim=1) - sorted_probs
    return torch.zeros_like(probs_NV).scatter(1, order, sorted_probs.where(before < top_p_N1, 0.0))


def draw(weights_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """Draw one token per row from unnormalised weights, by inversion: token ids `[N]`.

    Args:
        weights_NV: non-negative, with a positive sum in every row.
        uniform_N: uniform draws in [0, 1).
    """
    cdf_NV = weights_NV.double().cumsum(dim=-1)
    threshold_N1 = uniform_N.double()[:, None] * cdf_NV[:, -1:]
    # right=True finds the first token whose cumulative weight *exceeds* the draw, so its own weight is positive.
    ids_N = torch.searchsorted(cdf_NV, threshold_N1, right=True)[:, 0]
    return ids_N.clamp(max=weights_NV.shape[-1] - 1)
