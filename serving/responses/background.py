"""Responses that are made in the background: they go on whether or not a client listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from serving.answering.generation import Deltas
from serving.answering.sse import Events, Framing, named_frame
from serving.responses.answer import ResponsesAnswer
from serving.responses.items import Item
from serving.responses.store import ResponseStore
from serving.wire.errors import QUEUE_FULL_RETRY_S, ApiError, to_api_error

FRAMING = Framing(frame=named_frame, end=b"")
"""Of events that were shaped before, errors included."""


class BackgroundRun:
    """One response in the making.

    Args:
        answer: shapes it.
        deltas: the engine's; they are read, and at the end closed, by a task of the run's own.
        items: what comes before its output.
    """

    def __init__(self, answer: ResponsesAnswer, deltas: Deltas, items: Sequence[Item]) -> None:
        self.answer, self.items = answer, items
        self.events: list[str] = []
        """As JSON; the index of each is its sequence number."""
        self._changed = asyncio.Event()
        self._tell(answer.queue())
        self.task = asyncio.create_task(self._run(deltas))

    async def _run(self, deltas: Deltas) -> None:
        has_begun = False
        try:
            async with aclosing(deltas):
                async for item in deltas:
                    if item is None:
                        continue
                    if not has_begun:
                        has_begun = True
                        self._tell(self.answer.begin())
                    self._tell(self.answer.read(*item))
            self._tell(self.answer.end())
        except Exception as error:  # `to_api_error` decides what the client may see of it
            self._tell(self.answer.fail(to_api_error(error)))

    def _tell(self, events: Iterable[Mapping[str, Any]]) -> None:
        self.events += [json.dumps(event) for event in events]
        self._wake()

    def _wake(self) -> None:
        """Wake those who follow; the next change is a new event."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, start: int, ping_interval_s: float) -> Events:
        """The events from number `start` on, as they come; None after each silence of `ping_interval_s`."""
        number = start
        while True:
            while number < len(self.events):
                yield json.loads(self.events[number])
                number += 1
            if self.task.done():
                return
            changed = self._changed
            try:
                async with asyncio.timeout(ping_interval_s):
                    await changed.wait()
            except TimeoutError:
                yield None

    async def cancel(self) -> None:
        """Stop it where it is, and wait until it has stopped."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def end(self) -> None:
        """Called once the task is done."""
        if self.task.cancelled():
            self.answer.cancel()
        self._wake()


class BackgroundResponses:
    """All that are in the making. What has ended is in the store, with its events.

    Args:
        store: takes what has ended.
        most: how many may be in the making at once.
    """

    def __init__(self, store: ResponseStore, most: int) -> None:
        self._store, self._most = store, most
        self._running: dict[tuple[str, str], BackgroundRun] = {}
        """By owner and id."""

    def check_room(self) -> None:
        """Check that one more may begin.

        Raises:
            ApiError: 400, this server makes none; 429, there are as many as there may be.
        """
        if not self._most or not self._store.max_bytes:
            message = "'background' is not offered by this server, which keeps no responses; leave it out."
            raise ApiError(400, message, param="background", code="unsupported_parameter")
        if len(self._running) >= self._most:
            message = f"{self._most} responses are being made in the background; ask again when one has ended."
            headers = {"Retry-After": str(QUEUE_FULL_RETRY_S)}
            raise ApiError(429, message, param="background", code="queue_full", headers=headers)

    def check_unused(self, owner: str, response_id: str, param: str) -> None:
        """Check that an id which a client chose is new, in the making and in the store.

        Raises:
            ApiError: 400, a response of this owner has it.
        """
        if (owner, response_id) in self._running:
            message = f"'{param}': the response '{response_id}' is being made; choose another id."
            raise ApiError(400, message, param=param, code="invalid_value")
        self._store.check_unused(owner, response_id, param)

    def start(self, owner: str, answer: ResponsesAnswer, deltas: Deltas, items: Sequence[Item]) -> BackgroundRun:
        """Begin one. Raises as `check_room` and `check_unused` do: others may have begun since they were called."""
        self.check_room()
        self.check_unused(owner, answer.answer_id, "request_id")
        run = BackgroundRun(answer, deltas, items)
        self._running[owner, answer.answer_id] = run
        run.task.add_done_callback(partial(self._end, owner, run))
        return run

    def find(self, owner: str, response_id: str) -> BackgroundRun | None:
        """The one in the making that has this id."""
        return self._running.get((owner, response_id))

    def check_ended(self, owner: str, response_id: str, param: str) -> None:
        """Check that this response is not in the making.

        Raises:
            ApiError: 400, it is.
        """
        if self.find(owner, response_id) is not None:
            message = f"'{param}': the response '{response_id}' is still being made; wait for its end, or cancel it."
            raise ApiError(400, message, param=param, code="invalid_value")

    def _end(self, owner: str, run: BackgroundRun, _: asyncio.Task[None]) -> None:
        run.end()
        del self._running[owner, run.answer.answer_id]
        self._store.put(owner, run.answer.response, run.items, events=run.events)
