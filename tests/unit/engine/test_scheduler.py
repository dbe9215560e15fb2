"""Rows stay compact, and no two queries ever share one, whatever comes and goes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from osd.config.target import EngineConfig
from osd.engine.scheduler import Scheduler
from osd.engine.sequence import Sequence
from osd.records.errors import QueueFullError
from osd.records.query import Request
from osd.text.stop_strings import AnswerText
from tests.kit.engine_kit import char_codec

_CODEC = char_codec()


def _sequence(name: str) -> Sequence:
    return Sequence(request=Request(request_id=name, prompt_ids=(1,)), text=AnswerText(_CODEC), generator=Random())


class Life(RuleBasedStateMachine):
    """Queries are submitted, read, finished and cancelled in any order; `cache` says whose data each row holds."""

    @initialize(max_slots=st.integers(1, 5), max_waiting=st.integers(0, 3))
    def begin(self, max_slots: int, max_waiting: int) -> None:
        self.max_slots, self.max_waiting = max_slots, max_waiting
        self.scheduler = Scheduler(EngineConfig(max_slots=max_slots, max_waiting=max_waiting), self.swap)
        self.cache: dict[int, Sequence] = {}
        self.queue: list[Sequence] = []
        self.count = 0

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        for place in (row, other):
            assert self.cache[place].row == place, "its data is where its row says, until both have moved"
            assert self.cache[place].num_tokens <= num_tokens
        self.cache[row], self.cache[other] = self.cache[other], self.cache[row]

    def live(self) -> list[Sequence]:
        prefilling = self.scheduler.prefilling
        return [*self.scheduler.decoding, *([prefilling] if prefilling else [])]

    @rule()
    def submit(self) -> None:
        sequence = _sequence(f"q{self.count}")
        self.count += 1
        free = self.max_slots - len(self.live())
        if len(self.scheduler.waiting) < self.max_waiting + free:
            self.scheduler.submit(sequence)
            self.queue.append(sequence)
        else:
            with pytest.raises(QueueFullError):
                self.scheduler.submit(sequence)

    @rule()
    def read_prompt(self) -> None:
        known = self.scheduler.prefilling
        sequence = self.scheduler.next_prefill()
        if known is not None:
            assert sequence is known
        elif sequence is not None:
            assert sequence is self.queue.pop(0), "first come, first served"
            assert all(one.row != sequence.row for one in self.scheduler.decoding)
            self.cache[sequence.row] = sequence
        else:
            assert not self.queue or len(self.scheduler.decoding) == self.max_slots

    @precondition(lambda self: self.scheduler.prefilling is not None)
    @rule()
    def start_decoding(self) -> None:
        self.scheduler.start_decoding()

    @precondition(lambda self: self.live() or self.queue)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from([*self.live(), *self.queue]))
        self.scheduler.remove(sequence)
        if sequence in self.queue:
            self.queue.remove(sequence)
        else:
            assert self.cache[len(self.live())] is sequence, "what was read for it is in the first free row"
        assert sequence.row == -1
        assert sequence not in self.live()

    @invariant()
    def rows_are_compact_and_hold_their_own_data(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        live = self.live()
        assert [sequence.row for sequence in live] == list(range(len(live)))
        assert len(live) <= self.max_slots
        assert all(self.cache[sequence.row] is sequence for sequence in live)
        assert list(self.scheduler.waiting) == self.queue
        assert self.scheduler.has_work == bool(live or self.queue)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


def test_rows_move_as_the_engine_expects() -> None:
    """The last decoding row fills the gap, then the one being read follows down."""
    swaps: list[tuple[int, int, int]] = []

    def swap(row: int, other: int, num_tokens: int) -> None:
        swaps.append((row, other, num_tokens))

    scheduler = Scheduler(EngineConfig(max_slots=4), swap)
    queries = [_sequence(name) for name in "abcd"]
    for query in queries:
        scheduler.submit(query)
        scheduler.next_prefill()
        if query is not queries[-1]:
            scheduler.start_decoding()
    scheduler.remove(queries[0])
    assert swaps == [(0, 2, 1), (2, 3, 1)]
    assert [query.row for query in (queries[2], queries[1], queries[3])] == [0, 1, 2]


def test_lower_priorities_come_first_and_equal_ones_in_their_order() -> None:
    scheduler = Scheduler(EngineConfig(max_slots=1, max_waiting=9), lambda *rows: None)
    for name, priority in (("a", 0), ("b", 5), ("c", -1), ("d", 0), ("e", -1), ("f", 5)):
        request = Request(request_id=name, prompt_ids=(1,), priority=priority)
        scheduler.submit(Sequence(request=request, text=AnswerText(_CODEC), generator=Random()))
    served = []
    while (sequence := scheduler.next_prefill()) is not None:
        served.append(sequence.request.request_id)
        scheduler.remove(sequence)
    assert served == list("ceadbf")
