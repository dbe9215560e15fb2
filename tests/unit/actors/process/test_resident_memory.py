"""Memory of the actors' processes."""

from __future__ import annotations

from actors.process.resident_memory import RayMemory, resident_bytes


def test_processes_that_are_gone_are_left_out() -> None:
    assert resident_bytes({"none": None, "gone": 2**22 + 1}) == {}


def test_rays_memory_is_measured_again_after_thirty_seconds_only() -> None:
    """Looking at every process of the machine took a third of the supervisor's processor time."""
    clock_s, sizes = [0.0], iter([100, 200, 300])
    memory = RayMemory(measure=lambda _: next(sizes), now=lambda: clock_s[0])
    found = []
    for clock_s[0] in (0.0, 2.0, 29.9, 30.0, 59.0, 61.0):
        found.append(memory.resident({1}))
    assert found == [100, 100, 100, 200, 200, 300]
