"""Time in training, without the waits in between."""

from __future__ import annotations

from trainer.loop.stopwatch import Stopwatch


def test_waits_are_left_out() -> None:
    now_s = 0.0
    stopwatch = Stopwatch(lambda: now_s)
    with stopwatch:
        now_s = 2.0
        with stopwatch.halted():
            now_s = 5.0
        now_s = 6.0
    now_s = 9.0
    assert stopwatch.total_s == 3.0
    with stopwatch:
        now_s = 10.0
    assert stopwatch.total_s == 4.0
