"""Memory of the actors' processes."""

from __future__ import annotations

from actors.resident_memory import resident_bytes


def test_processes_that_are_gone_are_left_out() -> None:
    assert resident_bytes({"none": None, "gone": 2**22 + 1}) == {}
