"""Fixtures of the engine's tests."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kit.engine_kit import tiny_llama
from tests.unit.engine.cases import DRAFTERS, MakeDrafter


@pytest.fixture(scope="package")
def model() -> Any:
    return tiny_llama(0)


@pytest.fixture(params=list(DRAFTERS))
def make_drafter(request: pytest.FixtureRequest) -> MakeDrafter:
    return DRAFTERS[request.param]
