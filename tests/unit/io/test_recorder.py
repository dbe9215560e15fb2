"""The recorder keeps every outcome it can, in order, and never holds up or fails its caller."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from osd.io.recorder import Recorder, Spill
from osd.io.spill import SpillFile
from osd.records.errors import OutcomeSinkError
from osd.records.outcome import Outcome
from tests.kit.outcome_samples import sample_outcome
from tests.kit.waiting import wait_for

_PATIENCE_S = 20.0
_LONGEST_RETRY_S = 0.05


class _Sink:
    """A stream that can be taken away, hang, or refuse one outcome for good."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.arrivals = 0
        """Calls of `put` that began; one that hangs is among them."""
        self.attempts = 0
        self.away = False
        self.poison = ""
        self.open = threading.Event()
        self.open.set()
        self.changed = threading.Condition()

    def put(self, outcome: Outcome) -> None:
        with self.changed:
            self.arrivals += 1
            self.changed.notify_all()
        assert self.open.wait(_PATIENCE_S)
        with self.changed:
            self.attempts += 1
            self.changed.notify_all()
            if self.away:
                raise OutcomeSinkError("away")
            if outcome.request_id == self.poison:
                raise ValueError("never")
            self.names.append(outcome.request_id)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, _PATIENCE_S)


@pytest.fixture
def sink() -> _Sink:
    return _Sink()


@pytest.fixture
def spill(tmp_path: Path) -> SpillFile:
    return SpillFile(tmp_path / "outcomes.spill", 1 << 20)


@contextmanager
def _recording(sink: _Sink, spill: Spill, *, queue_entries: int = 64, retry_s: float = 0.01) -> Iterator[Recorder]:
    recorder = Recorder(
        sink, spill, queue_entries=queue_entries, first_retry_s=retry_s, longest_retry_s=max(retry_s, _LONGEST_RETRY_S)
    )
    try:
        yield recorder
    finally:
        sink.open.set()
        recorder.close()


def _record(recorder: Recorder, *names: str) -> None:
    for name in names:
        recorder.record(lambda name=name: sample_outcome(name))  # type: ignore[misc]


def _counts(recorder: Recorder) -> tuple[int, int, int, int]:
    counters = recorder.counters()
    return (
        counters["outcomes_recorded"],
        counters["outcomes_spilled"],
        counters["outcomes_replayed"],
        counters["outcomes_dropped"],
    )


def test_outcomes_reach_the_stream_in_order(sink: _Sink, spill: SpillFile) -> None:
    with _recording(sink, spill) as recorder:
        _record(recorder, "a", "b", "c")
        assert recorder.flush(_PATIENCE_S)
        assert sink.names == ["a", "b", "c"]
        assert _counts(recorder) == (3, 0, 0, 0)


def test_outcomes_are_assembled_off_the_callers_thread(sink: _Sink, spill: SpillFile) -> None:
    threads = []

    def make() -> Outcome:
        threads.append(threading.current_thread())
        return sample_outcome()

    with _recording(sink, spill) as recorder:
        recorder.record(make)
        assert recorder.flush(_PATIENCE_S)
    assert threads
    assert threading.current_thread() not in threads


def test_a_hanging_stream_never_holds_up_the_caller(sink: _Sink, spill: SpillFile) -> None:
    sink.open.clear()
    with _recording(sink, spill, queue_entries=4) as recorder:
        _record(recorder, "in hand")
        sink.wait_for(lambda: sink.arrivals == 1)
        _record(recorder, *"abcdef")
        assert recorder.counters()["outcomes_dropped"] == 2
        assert not recorder.flush(0.0)
        sink.open.set()
        assert recorder.flush(_PATIENCE_S)
        assert sink.names == ["in hand", *"abcd"]


def test_what_the_stream_refuses_is_spilled_and_replayed_first(sink: _Sink, spill: SpillFile) -> None:
    with _recording(sink, spill) as recorder:
        sink.away = True
        _record(recorder, "a", "b", "c")
        assert recorder.flush(_PATIENCE_S)
        assert sink.names == []
        assert _counts(recorder) == (0, 3, 0, 0)
        with sink.changed:
            sink.away = False
        _record(recorder, "d")
        sink.wait_for(lambda: len(sink.names) == 4)
        assert recorder.flush(_PATIENCE_S)
        assert sink.names == ["a", "b", "c", "d"]
        recorded, spilled, replayed, dropped = _counts(recorder)
        assert (recorded, dropped) == (4, 0)
        assert spilled == replayed >= 3


def test_the_spill_is_replayed_without_new_traffic(sink: _Sink, spill: SpillFile) -> None:
    with _recording(sink, spill) as recorder:
        sink.away = True
        _record(recorder, "a")
        sink.wait_for(lambda: sink.attempts >= 3)  # it keeps trying
        with sink.changed:
            sink.away = False
        sink.wait_for(lambda: sink.names == ["a"])


def test_what_a_former_process_spilled_is_delivered_first(sink: _Sink, spill: SpillFile) -> None:
    assert spill.append(sample_outcome("former"))
    with _recording(sink, spill) as recorder:
        _record(recorder, "new")
        assert recorder.flush(_PATIENCE_S)
        assert sink.names == ["former", "new"]


def test_attempts_are_spaced_out_while_the_stream_is_away(sink: _Sink, spill: SpillFile) -> None:
    sink.away = True
    with _recording(sink, spill, retry_s=3600.0) as recorder:
        _record(recorder, *(str(number) for number in range(30)))
        assert recorder.flush(_PATIENCE_S)
        assert sink.attempts == 1
        assert _counts(recorder) == (0, 30, 0, 0)


def test_order_holds_when_outcomes_arrive_during_a_long_replay(sink: _Sink, spill: SpillFile) -> None:
    for name in "abc":
        assert spill.append(sample_outcome(name))
    sink.open.clear()
    with _recording(sink, spill, queue_entries=3) as recorder:
        _record(recorder, "d", "e", "f")
        sink.open.set()
        sink.wait_for(lambda: len(sink.names) == 6)
        assert sink.names == list("abcdef")
        assert recorder.counters()["outcomes_dropped"] == 0


def test_the_spill_comes_before_what_is_queued_when_its_time_is_due(sink: _Sink, spill: SpillFile) -> None:
    taken, go_on = threading.Event(), threading.Event()

    def slow() -> Outcome:
        taken.set()
        assert go_on.wait(_PATIENCE_S)
        return sample_outcome("b")

    sink.away = True
    with _recording(sink, spill) as recorder:
        _record(recorder, "a")
        recorder.record(slow)
        assert taken.wait(_PATIENCE_S)
        tried_s = time.monotonic()  # or a little before
        sink.away = False
        _record(recorder, "c")
        wait_for(lambda: time.monotonic() > tried_s + _LONGEST_RETRY_S, "the spill's time")
        go_on.set()
        sink.wait_for(lambda: len(sink.names) == 3)
        assert sink.names == ["a", "b", "c"]


def test_a_full_spill_drops_and_counts(sink: _Sink, tmp_path: Path) -> None:
    sink.away = True
    with _recording(sink, SpillFile(tmp_path / "none", 0), retry_s=3600.0) as recorder:
        _record(recorder, "a", "b")
        assert recorder.flush(_PATIENCE_S)
        assert _counts(recorder) == (0, 0, 0, 2)


def test_an_outcome_that_cannot_be_made_harms_no_other(sink: _Sink, spill: SpillFile) -> None:
    def fail() -> Outcome:
        raise RuntimeError("no")

    with _recording(sink, spill) as recorder:
        recorder.record(fail)
        _record(recorder, "a")
        assert recorder.flush(_PATIENCE_S)
        assert sink.names == ["a"]
        assert _counts(recorder) == (1, 0, 0, 1)


@pytest.mark.parametrize("spilled", [False, True])
def test_an_outcome_that_can_never_be_taken_blocks_no_other(sink: _Sink, spill: SpillFile, spilled: bool) -> None:
    sink.poison = "bad"
    if spilled:
        assert spill.append(sample_outcome("bad"))
        assert spill.append(sample_outcome("good"))
    with _recording(sink, spill) as recorder:
        if not spilled:
            _record(recorder, "bad", "good")
        sink.wait_for(lambda: sink.names == ["good"])
        assert recorder.flush(_PATIENCE_S)
        assert recorder.counters()["outcomes_dropped"] == 1


def test_a_failing_spill_does_not_end_the_thread(sink: _Sink) -> None:
    class Broken:
        def append(self, outcome: Outcome) -> bool:
            raise RuntimeError("broken")

        def replay(self) -> Iterator[Outcome]:
            raise RuntimeError("broken")

    with _recording(sink, Broken(), retry_s=3600.0) as recorder:
        _record(recorder, "a")
        assert recorder.flush(_PATIENCE_S)
        assert recorder._thread.is_alive()
        assert _counts(recorder) == (0, 0, 0, 1)


def test_close_keeps_what_is_queued(sink: _Sink, spill: SpillFile) -> None:
    with _recording(sink, spill) as recorder:
        _record(recorder, "a", "b")
    assert sink.names == ["a", "b"]
    assert not recorder._thread.is_alive()
    _record(recorder, "late")
    assert recorder.counters()["outcomes_dropped"] == 1


def test_close_spills_while_the_stream_is_away(sink: _Sink, spill: SpillFile) -> None:
    sink.away = True
    with _recording(sink, spill, retry_s=3600.0) as recorder:
        _record(recorder, "a", "b")
    assert [outcome.request_id for outcome in spill.replay()] == ["a", "b"]


def test_without_a_stream_nothing_is_recorded(spill: SpillFile) -> None:
    recorder = Recorder(None, spill, queue_entries=4)
    _record(recorder, "a")
    assert recorder.flush(_PATIENCE_S)
    assert _counts(recorder) == (0, 0, 0, 0)
    recorder.close()


def test_a_share_of_the_queries_is_left_out_and_counted(sink: _Sink, spill: SpillFile) -> None:
    with _recording(sink, spill) as recorder:
        assert all(recorder.takes(f"q{number}") for number in range(100))
        recorder.share = 0.5
        num_taken = sum(recorder.takes(f"q{number}") for number in range(400))
        assert 160 < num_taken < 240
        assert recorder.counters()["outcomes_left_out"] == 400 - num_taken
