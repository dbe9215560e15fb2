"""Feeds recent answers of all engines to this engine's lookup, or labelled prompts to its router.

consumes: a stream of `osd.io.answers.stream`, from its beginning
waits for: a new entry
is unblocked by: a new entry, `stop`
on failure: while Redis is away nothing is added; afterwards reading continues at the same position
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from osd.io.answers.stream import FROM_START, Read
from osd.records.errors import OutcomeSinkError

_log = logging.getLogger(__name__)
_READ_ANSWERS = 64
_BLOCK_MS = 1000
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 15.0


class AnswerSource(Protocol):
    """Where answers are read (implemented by `osd.io.answers.stream.RedisAnswerStream`)."""

    def read(self, after: str, max_count: int, block_ms: int) -> Read:
        """See `RedisAnswerStream.read`."""
        ...


class AnswerFeed:
    """Hands every entry of one target to `add`, on a thread of its own.

    Args:
        source: the stream.
        target_id: entries of other targets are skipped.
        add: takes an entry's domain and tokens.
        pause_s: after the source first failed; it doubles with each further failure.
    """

    def __init__(
        self,
        source: AnswerSource,
        target_id: str,
        add: Callable[[str, tuple[int, ...]], None],
        *,
        pause_s: float = _FIRST_PAUSE_S,
    ) -> None:
        self._source, self._target_id, self._add, self._first_pause_s = source, target_id, add, pause_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osd-answer-feed", daemon=True)

    def start(self) -> None:
        """Start reading."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        position, pause_s = FROM_START, self._first_pause_s
        while not self._stopping.is_set():
            try:
                position, answers = self._source.read(position, _READ_ANSWERS, _BLOCK_MS)
            except OutcomeSinkError as error:
                _log.warning("recent answers and prompts cannot be read, next attempt in %.1f s: %s", pause_s, error)
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            pause_s = self._first_pause_s
            for answer in answers:
                if self._stopping.is_set():
                    return
                if answer.target_id == self._target_id:
                    self._add(answer.domain, answer.token_ids)
