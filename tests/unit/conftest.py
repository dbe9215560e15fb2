"""For every unit test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=[1, 2], ids=["one core", "two cores"])
def num_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Compiled loops by one thread, and by several."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield int(request.param)
    torch.set_num_threads(before)
