"""Biases, penalties and forbidden tokens: answers follow the target's changed distribution, speculating or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from osd.records.rules import AcceptRule
from osd.verify.adjust import AdjustedRow, adjust
from tests.statistical.emission import ALARM, acceptance, emit, engine_with, fair_drafter, p_values
from tests.statistical.exact import CASES, Exact, enumerate_outputs

_SAMPLES = 800
_END = 1
_ASKED: dict[str, Any] = {
    "repetition_penalty": 2.0,
    "presence_penalty": 1.5,
    "logit_bias": ((2, 1.5), (5, -2.0)),
    "bad_words": ((7,), (2, 4)),
    "stop_token_ids": (_END,),
    "min_tokens": 3,
}


def _changed(logits_NV: Tensor, outputs_ND: Tensor, prompt: Sequence[int]) -> Tensor:
    """Written apart from osd.verify.adjust."""
    logits_NV = logits_NV.float().clone()
    logits_NV[:, 2] += 1.5
    logits_NV[:, 5] -= 2.0
    logits_NV[:, 7] = -1e4
    num_said = outputs_ND.shape[1]
    if num_said:
        logits_NV[outputs_ND[:, -1] == 2, 4] = -1e4
    if num_said < 3:
        logits_NV[:, _END] = -1e4
    one_hot = torch.nn.functional.one_hot
    said_NV = one_hot(outputs_ND, logits_NV.shape[1]).sum(dim=1) > 0
    known_NV = said_NV | (one_hot(torch.tensor(prompt), logits_NV.shape[1]).sum(dim=0) > 0)
    weaker_NV = torch.where(logits_NV > 0, logits_NV / 2.0, logits_NV * 2.0)
    return torch.where(known_NV, weaker_NV, logits_NV) - 1.5 * said_NV


@pytest.fixture(scope="module")
def adjusted(model: Any) -> dict[str, Exact]:
    return {
        name: enumerate_outputs(model, prompt, params, changed=partial(_changed, prompt=prompt))
        for name, (params, prompt) in CASES.items()
    }


def _figures(outputs: dict[str, list[list[int]]], adjusted: dict[str, Exact]) -> dict[str, float]:
    """P-values; without that of a case in which bfloat16's rounding leaves a single cell to compare (top-p's)."""
    figures = {name: value for name, value in p_values(outputs, adjusted).items() if not math.isnan(value)}
    assert "plain" in figures
    return figures


@pytest.mark.parametrize("lengths", [(0,), (3, 1, 3, 0, 2)])
def test_what_a_query_asks_for_is_kept_and_changes_nothing_else(
    model: Any, adjusted: dict[str, Exact], rule: AcceptRule, lengths: Sequence[int]
) -> None:
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    figures = _figures(emit(engine, lengths=lengths, samples=_SAMPLES, **_ASKED), adjusted)
    assert min(figures.values()) > ALARM, figures
    if any(lengths):
        assert acceptance(engine) > 0.1


def test_an_adjustment_that_overlooks_the_proposal_is_noticed(
    model: Any, adjusted: dict[str, Exact], rule: AcceptRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model.dtype != torch.float32:
        pytest.skip(
            "it shows in the tokens that top-p cannot keep, where bfloat16's rounding leaves nothing to compare"
        )

    def overlooking(logits_QV: Tensor, row: AdjustedRow, proposed_K: Tensor) -> Tensor:
        return adjust(logits_QV, row, proposed_K[:0])

    monkeypatch.setattr("osd.verify.verdict.adjust", overlooking)
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    figures = _figures(emit(engine, lengths=(3,), samples=_SAMPLES, **_ASKED), adjusted)
    assert min(figures.values()) < ALARM, figures
