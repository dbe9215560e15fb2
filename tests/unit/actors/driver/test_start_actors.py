"""A Ray that does not start is told in one line, whatever it raises."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NoReturn

import pytest
import ray

from actors.driver.start_actors import start_ray
from osd.config.settings import Config
from osd.records.errors import OsdError


@pytest.mark.parametrize("raised", [Exception("The current node timed out during startup.\nmore"), OSError("full")])
def test_a_ray_that_does_not_start(monkeypatch: pytest.MonkeyPatch, raised: Exception) -> None:
    def init(**_: object) -> NoReturn:
        raise raised

    monkeypatch.setattr(ray, "init", init)
    with ExitStack() as stack, pytest.raises(OsdError) as refused:
        start_ray(Config(), stack)
    [line] = str(refused.value).splitlines()
    assert line.startswith(f"cannot start Ray: {str(raised).splitlines()[0]}; check free memory")
