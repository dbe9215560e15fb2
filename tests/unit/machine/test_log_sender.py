"""Records on their way to another process: in order, kept while it is away, bounded, and never in a circle."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from osd.machine.log_sender import LogSender
from tests.kit.waiting import wait_for

_log = logging.getLogger("actors.test_log_sender")


class Receiver:
    """Takes batches of lines unless it is away."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.is_away = False
        self.num_failures = 0

    def take(self, lines: list[str]) -> None:
        if self.is_away:
            _log.warning("said while sending")  # as a library may
            self.num_failures += 1
            raise ConnectionError("restarting")
        self.lines += lines


@contextmanager
def sending(receiver: Receiver, *, interval_s: float = 0.001, max_lines: int = 1000) -> Iterator[LogSender]:
    sender = LogSender(receiver.take, interval_s=interval_s, max_lines=max_lines)
    _log.addHandler(sender)
    _log.setLevel("INFO")
    try:
        yield sender
    finally:
        _log.removeHandler(sender)
        _log.setLevel("NOTSET")
        sender.close()


def test_lines_arrive_in_order_without_being_asked_for() -> None:
    receiver = Receiver()
    with sending(receiver):
        for number in range(100):
            _log.info("line %d", number)
        wait_for(lambda: len(receiver.lines) == 100)
    assert receiver.lines == [f"line {number}" for number in range(100)]


def test_what_waits_is_sent_at_the_end() -> None:
    receiver = Receiver()
    with sending(receiver, interval_s=3600):
        _log.info("the last words")
    assert receiver.lines == ["the last words"]


def test_lines_wait_for_a_receiver_that_is_away_and_what_sending_says_is_not_sent() -> None:
    receiver = Receiver()
    receiver.is_away = True
    with sending(receiver):
        _log.info("first")
        wait_for(lambda: receiver.num_failures > 2)
        _log.info("second")
        receiver.is_away = False
        wait_for(lambda: len(receiver.lines) == 2)
    assert receiver.lines == ["first", "second"]


def test_beyond_the_bound_the_oldest_are_dropped_and_counted() -> None:
    receiver = Receiver()
    receiver.is_away = True
    with sending(receiver, max_lines=10):
        for number in range(25):
            _log.info("line %d", number)
        wait_for(lambda: receiver.num_failures > 2)
        receiver.is_away = False
        wait_for(lambda: len(receiver.lines) == 11)
    assert receiver.lines == [
        "15 older lines of this process were dropped while nobody took them",
        *(f"line {number}" for number in range(15, 25)),
    ]
