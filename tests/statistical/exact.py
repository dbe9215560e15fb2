"""The exact distribution of a query's first tokens, enumerated through the plain model, and the test against it.

Pearson's chi-square test of the joint distribution of four tokens. Cells are taken in lexicographic order and merged
until each is expected at least `_MIN_EXPECTED` times; a token that the target cannot emit fails at once.

In bfloat16 the plain model's logits and the engine's are rounded differently, by up to 0.02 in a log-probability: too
little to show in some thousand samples, except where it decides which tokens top-p keeps. Outputs that pass through
such a context are one cell of the test, see `is_clear`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from scipy.stats import chi2
from torch import Tensor

from osd.records.query import SamplingParams
from tests.kit.engine_kit import VOCAB_TOKENS

TOKENS = 4
_MIN_EXPECTED = 5.0
_ROUNDING = 0.02
"""More than bfloat16's rounding moves a probability, relatively, or a sum of them."""

CASES = {
    "plain": (SamplingParams(temperature=1.0), (3, 1, 4)),
    "nucleus": (SamplingParams(temperature=0.8, top_p=0.9), (2, 7, 1, 8, 2)),
}
"""Sampling parameters and prompt."""


def shaped(logits_NV: Tensor, params: SamplingParams) -> Tensor:
    """Temperature and top-p in float64, written apart from osd.verify.shaping."""
    probs_NV = torch.softmax(logits_NV.double() / params.temperature, dim=-1)
    order_NV = probs_NV.argsort(dim=-1, descending=True)
    sorted_NV = probs_NV.gather(1, order_NV)
    mass_before_NV = torch.cat((torch.zeros(len(sorted_NV), 1), sorted_NV.cumsum(dim=-1)[:, :-1]), dim=1)
    kept_NV = torch.zeros_like(probs_NV).scatter(1, order_NV, sorted_NV * (mass_before_NV < params.top_p))
    return kept_NV / kept_NV.sum(dim=-1, keepdim=True)


class Exact(NamedTuple):
    """By d = 0 .. TOKENS - 1, of the contexts that consist of a prompt and each of the V^d outputs of d tokens:"""

    tables: list[Tensor]
    """the target's distribution of the next token, `[V^d, V]`;"""
    is_clear: list[Tensor]
    """see the function of that name, `[V^d]`."""


@torch.no_grad()
def enumerate_outputs(
    model: Any,
    prompt: Sequence[int],
    params: SamplingParams,
    allowed: Callable[[Tensor], Tensor] | None = None,
    changed: Callable[[Tensor, Tensor], Tensor] = lambda logits_NV, outputs_ND: logits_NV,
) -> Exact:
    """All outputs of a prompt, by plain passes of the model.

    Args:
        model: the target.
        prompt: its token ids.
        params: how the query is sampled.
        allowed: which tokens may follow each of N outputs of D tokens, bool `[N, V]`; None: all.
        changed: the logits after N outputs as the query has them changed, of both of them.
    """
    exact = Exact([], [])
    for depth in range(TOKENS):
        places = VOCAB_TOKENS ** torch.arange(depth - 1, -1, -1)
        outputs = torch.arange(VOCAB_TOKENS**depth)[:, None] // places % VOCAB_TOKENS
        ids = torch.cat((torch.tensor(prompt).expand(len(outputs), -1), outputs), dim=1)
        logits_NV = model(input_ids=ids, use_cache=False).logits[:, -1]
        logits_NV = changed(logits_NV, outputs)
        if allowed is not None:
            logits_NV = logits_NV.masked_fill(~allowed(outputs), -torch.inf)
        exact.tables.append(shaped(logits_NV, params))
        exact.is_clear.append(is_clear(logits_NV.to(model.dtype), params))
    return exact


def joint_probs(tables: list[Tensor]) -> Tensor:
    """P(first four tokens), `[V^4]` in lexicographic order."""
    joint = torch.ones(1, dtype=torch.float64)
    for table_NV in tables:
        joint = (joint[:, None] * table_NV).flatten()
    return joint


def is_clear(logits_NV: Tensor, params: SamplingParams) -> Tensor:
    """Contexts in which bfloat16's rounding cannot change what top-p keeps, `[N]`.

    No sum of probabilities is near `top_p`, and no token left out is nearly as likely as one that is kept.
    """
    if logits_NV.dtype == torch.float32 or params.top_p == 1.0:
        return torch.ones(len(logits_NV), dtype=torch.bool)
    probs_NV = torch.softmax(logits_NV.double() / params.temperature, dim=-1).sort(dim=-1, descending=True).values
    mass_NV = probs_NV.cumsum(dim=-1)
    is_far_N = ((mass_NV - params.top_p).abs() > _ROUNDING).all(dim=-1)
    last_N1 = (mass_NV < params.top_p).sum(dim=-1, keepdim=True).clamp(max=VOCAB_TOKENS - 2)
    is_apart_N1 = probs_NV.gather(1, last_N1 + 1) < (1 - 2 * _ROUNDING) * probs_NV.gather(1, last_N1)
    return is_far_N & is_apart_N1[:, 0]


def clear_outputs(contexts: list[Tensor]) -> Tensor:
    """Outputs of four tokens all of whose contexts are clear, `[V^4]`."""
    clear = torch.ones(1, dtype=torch.bool)
    for clear_N in contexts:
        clear = (clear & clear_N).repeat_interleave(VOCAB_TOKENS)
    return clear


def p_value(samples: Sequence[Sequence[int]], exact: Exact) -> float:
    """Pearson's chi-square test of emitted tokens against their exact joint distribution."""
    digits = torch.tensor(samples)
    cells = (digits * VOCAB_TOKENS ** torch.arange(TOKENS - 1, -1, -1)).sum(dim=1)
    clear = clear_outputs(exact.is_clear)
    counts, joint = (
        torch.cat((all_of_them[clear], all_of_them[~clear].sum()[None]))
        for all_of_them in (torch.bincount(cells, minlength=len(clear)).double(), joint_probs(exact.tables))
    )
    if bool((counts[joint == 0] > 0).any()):
        return 0.0
    return pearson(counts[joint > 0].tolist(), (joint[joint > 0] * len(samples)).tolist())


def pearson(counts: Sequence[float], expected: Sequence[float]) -> float:
    """The p-value of Pearson's chi-square test; neighbouring cells are merged until enough is expected of each."""
    merged: list[list[float]] = [[0.0, 0.0]]
    for count, expectation in zip(counts, expected, strict=True):
        if merged[-1][1] >= _MIN_EXPECTED:
            merged.append([0.0, 0.0])
        merged[-1][0] += count
        merged[-1][1] += expectation
    if len(merged) > 1 and merged[-1][1] < _MIN_EXPECTED:
        count, expectation = merged.pop()
        merged[-1][0] += count
        merged[-1][1] += expectation
    statistic = sum((count - expectation) ** 2 / expectation for count, expectation in merged)
    return float(chi2.sf(statistic, len(merged) - 1))
