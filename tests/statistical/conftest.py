"""Everything runs in float32 and in bfloat16, by both accept rules, on one thread."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from osd.records.rules import AcceptRule
from tests.kit.engine_kit import tiny_llama
from tests.statistical.emission import SHARPNESS
from tests.statistical.exact import CASES, Exact, enumerate_outputs


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_llama(6, sharpness=SHARPNESS).to(getattr(torch, request.param))


@pytest.fixture(params=["token", "block"])
def rule(request: pytest.FixtureRequest) -> AcceptRule:
    found: AcceptRule = request.param
    return found


@pytest.fixture(scope="module")
def exact(model: Any) -> dict[str, Exact]:
    return {name: enumerate_outputs(model, prompt, params) for name, (params, prompt) in CASES.items()}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
