"""What may die under streaming load, one after another: no query is lost, and the part comes back by itself."""

from __future__ import annotations

import sys

import pytest

from benchmarks.fleet.faults import FAULTS, survive
from tests.e2e.cluster.conftest import Fleet

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_loses_no_query(fleet: Fleet, name: str) -> None:
    fault = FAULTS[name]
    with fleet.load(retries=fault.retries) as load:
        recovery = survive(fault, fleet.cluster, fleet.redis, load)
    sys.stdout.write(f"\n{name}: {recovery}\n")
    if not fault.retries:
        assert {one.num_attempts for one in load.answers} == {1}
