"""Adjustments of logits, compared with the same arithmetic token by token."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

import pytest
import torch

from osd.records.query import Request, SamplingParams
from osd.verify.adjust import FORBIDDEN, adjust

_VOCAB = 9
_PROMPT = (8, 2)
_ENDS = frozenset({0, 5})


class _Row(NamedTuple):
    request: Request
    output_ids: list[int]
    end_ids: frozenset[int] = _ENDS


def _row(output: Sequence[int], **params: Any) -> _Row:
    return _Row(Request(request_id="r", prompt_ids=_PROMPT, params=SamplingParams(**params)), list(output))


def _expected(logit: float, token: int, params: SamplingParams, output: list[int]) -> float:
    if params.allowed_token_ids and token not in params.allowed_token_ids:
        logit += FORBIDDEN
    logit += sum(bias for one, bias in params.logit_bias if one == token)
    said = "".join(map(str, output))
    is_bad = any(word[-1] == token and said.endswith("".join(map(str, word[:-1]))) for word in params.bad_words)
    if is_bad or (token in _ENDS and len(output) < params.min_tokens):
        logit += FORBIDDEN
    if token in (*_PROMPT, *output):
        logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
    count = output.count(token)
    return logit - params.frequency_penalty * count - (params.presence_penalty if count else 0.0)


_CASES: dict[str, dict[str, Any]] = {
    "frequency and presence": {"presence_penalty": 0.5, "frequency_penalty": 0.25},
    "negative presence": {"presence_penalty": -1.0},
    "repetition": {"repetition_penalty": 1.7},
    "less than none": {"repetition_penalty": 0.5},
    "bias": {"logit_bias": ((1, 3.0), (4, -100.0))},
    "allowed": {"allowed_token_ids": (1, 2, 7)},
    "bad words": {"bad_words": ((3,), (1, 2), (1, 1, 3), (4, 5))},
    "ends": {"min_tokens": 4},
    "all": {
        "presence_penalty": 0.5,
        "frequency_penalty": -0.25,
        "repetition_penalty": 1.3,
        "logit_bias": ((1, 3.0), (5, 2.0)),
        "allowed_token_ids": (0, 1, 2, 3, 5),
        "bad_words": ((3,), (1, 2)),
        "min_tokens": 3,
    },
}


@pytest.mark.parametrize("params", _CASES.values(), ids=_CASES.keys())
def test_every_position_counts_what_comes_before_it(params: dict[str, Any]) -> None:
    random = Random(3)
    for _ in range(30):
        output = [random.randrange(1, 5) for _ in range(random.randrange(4))]
        proposed = [random.randrange(1, 5) for _ in range(random.randrange(4))]
        row = _row(output, **params)
        logits_QV = torch.tensor([[random.uniform(-3, 3) for _ in range(_VOCAB)] for _ in range(len(proposed) + 1)])
        found_QV = adjust(logits_QV, row, torch.tensor(proposed, dtype=torch.long))
        expected = [
            [
                _expected(float(logit), token, row.request.params, output + proposed[:at])
                for token, logit in enumerate(line)
            ]
            for at, line in enumerate(logits_QV)
        ]
        torch.testing.assert_close(found_QV, torch.tensor(expected))


def test_bfloat16_is_widened_and_the_logits_stay_as_they_are() -> None:
    logits_QV = torch.ones(1, _VOCAB, dtype=torch.bfloat16)
    found_QV = adjust(logits_QV, _row([], bad_words=((1,),)), torch.empty(0, dtype=torch.long))
    assert found_QV.dtype == torch.float32
    assert found_QV[0, 1] == 1 + FORBIDDEN
    assert logits_QV.tolist() == [[1.0] * _VOCAB]


@pytest.mark.parametrize("params", _CASES.values(), ids=_CASES.keys())
def test_each_is_known_to_change_logits(params: dict[str, Any]) -> None:
    assert SamplingParams(**params).adjusts_logits
    assert not SamplingParams().adjusts_logits
