"""The thread that adds answers to a lookup's pool goes on where it was when the stream is back."""

from __future__ import annotations

import threading

from osd.io.answers.feed import AnswerFeed
from osd.io.answers.stream import FROM_START, Answer, Read
from osd.records.errors import OutcomeSinkError
from tests.kit.waiting import wait_for


class _Source:
    """Answers numbered from 1; the second read fails, and so does the fourth."""

    def __init__(self) -> None:
        self.num_reads = 0
        self._answers = [Answer("tiny", "sql", (number,)) for number in range(1, 6)]
        self._answers[2] = Answer("other", "sql", (99,))
        self._ended = threading.Event()

    def read(self, after: str, max_count: int, block_ms: int) -> Read:
        self.num_reads += 1
        if self.num_reads in (2, 4):
            raise OutcomeSinkError("Redis is away")
        start = int(after.split("-")[0]) if after != FROM_START else 0
        found = self._answers[start : start + 2]
        if not found:
            self._ended.wait(0.01)
        return Read(f"{start + len(found)}-0", found)


def test_each_answer_of_the_target_is_added_once_and_in_order() -> None:
    source, added = _Source(), list[tuple[str, tuple[int, ...]]]()
    feed = AnswerFeed(source, "tiny", lambda domain, ids: added.append((domain, ids)), pause_s=0.01)
    feed.start()
    try:
        wait_for(lambda: source.num_reads > 6)
    finally:
        feed.stop()
    assert added == [("sql", (1,)), ("sql", (2,)), ("sql", (4,)), ("sql", (5,))]


def test_it_stops_while_the_stream_is_away() -> None:
    class Away:
        def read(self, after: str, max_count: int, block_ms: int) -> Read:
            raise OutcomeSinkError("Redis is away")

    feed = AnswerFeed(Away(), "tiny", lambda domain, ids: None, pause_s=3600.0)
    feed.start()
    feed.stop()
