"""What Serve says of a deployment that fails comes down to what osd said."""

from __future__ import annotations

import pytest

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)

from actors.serve.deploy import _cause
from osd.config.settings import ConfigError
from osd.io.redis_client import RedisRefusedError
from osd.records.errors import OsdError, WeightsRefusedError


@pytest.mark.parametrize("kind", [OsdError, ConfigError, RedisRefusedError, WeightsRefusedError])
def test_the_line_that_osd_raised_is_told(kind: type[OsdError]) -> None:
    """As Ray prints an exception in a replica's constructor, within Serve's own words."""
    message = f"""Deploying application osd failed: The deployment failed to start 3 times in a row.
Error:
ray::ServeReplica:osd:engine.initialize_and_get_metadata() (pid=7, ip=10.0.0.1)
  File "/osd/actors/engine/engine.py", line 10, in __init__
    self._opening.result()
{kind.__module__}.{kind.__qualname__}: the target does not fit; choose a smaller one

The above exception was the direct cause of the following exception:

RuntimeError: Traceback (most recent call last):
"""
    assert _cause(message) == "the target does not fit; choose a smaller one"


def test_without_such_a_line_what_serve_said_is_told_in_one_line() -> None:
    assert _cause("no\n  room: OsdErrors: none") == "no room: OsdErrors: none"
