"""Posts alerts to webhooks: signed, tried again with growing pauses, and kept when they cannot be delivered."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from osd.config.monitor import Webhook
from osd.records.events import Event

_log = logging.getLogger(__name__)
_ATTEMPTS = 8
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 300.0
_MOST_WAITING = 200
_MARKS = {"firing": "\N{LARGE RED CIRCLE}", "resolved": "\N{LARGE GREEN CIRCLE}"}

Post = Callable[[str, bytes, dict[str, str]], int]
"""Posts (url, body, headers); returns the HTTP status, and raises OSError where nobody answers."""


def payload(event: Event, format_: str) -> bytes:
    """An alert's event as the body of a post."""
    if format_ == "slack":
        text = f"{_MARKS.get(event.data['state'], '')} osd: {event.message} [{event.data['severity']}]"
        return json.dumps({"text": text}).encode()
    body: dict[str, Any] = {"source": "osd", "at_s": event.at_s, "message": event.message, **event.data}
    return json.dumps(body).encode()


def signature(secret: str, at_s: int, body: bytes) -> str:
    """The header `X-OSD-Signature`: HMAC-SHA256 over the time, a full stop and the body."""
    digest = hmac.new(secret.encode(), str(at_s).encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


@dataclass(slots=True)
class _Letter:
    hook: Webhook
    event: Event
    attempts: int = 0
    due_s: float = 0.0


class WebhookSender:
    """Delivers on a thread of its own.

    consumes: events given to `send`
    waits for: an event, or the time of the next attempt
    is unblocked by: `send`, `close`
    on failure: tries again after 1 s, 2 s, 4 s, …; the eighth failure makes it a dead letter

    Args:
        hooks: the receivers.
        secrets: environment variable to its value.
        post: delivers one body.
        on_dead: called with an event that says what could not be delivered, and contains it.
        clock_s: wall clock.
        first_retry_s: pause after the first failure.
    """

    def __init__(
        self,
        hooks: Sequence[Webhook],
        secrets: dict[str, str],
        post: Post,
        on_dead: Callable[[Event], None],
        *,
        clock_s: Callable[[], float] = time.time,
        first_retry_s: float = _FIRST_RETRY_S,
    ) -> None:
        self._hooks, self._secrets, self._post, self._on_dead = hooks, secrets, post, on_dead
        self._clock_s, self._first_retry_s = clock_s, first_retry_s
        self._letters: deque[_Letter] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="osd-webhooks", daemon=True)
        if hooks:
            self._thread.start()

    def send(self, event: Event) -> None:
        """Queue an alert's event for every receiver; never blocks. The oldest letters die when too many wait."""
        dead = []
        with self._changed:
            for hook in self._hooks:
                self._letters.append(_Letter(hook, event))
                if len(self._letters) > _MOST_WAITING:
                    dead.append(self._letters.popleft())
            self._changed.notify_all()
        for letter in dead:
            self._bury(letter, "too many alerts wait")

    def close(self) -> None:
        """Stop; what waits becomes dead letters."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for letter in self._letters:
            self._bury(letter, "osd stopped before it was delivered")

    def _run(self) -> None:
        while letter := self._next():
            problem = self._deliver(letter)
            if not problem:
                continue
            letter.attempts += 1
            if letter.attempts >= _ATTEMPTS:
                self._bury(letter, problem)
                continue
            pause_s = min(self._first_retry_s * 2 ** (letter.attempts - 1), _LONGEST_RETRY_S)
            letter.due_s = time.monotonic() + pause_s
            with self._changed:
                self._letters.append(letter)

    def _next(self) -> _Letter | None:
        """Wait for a letter that is due; None: the sender is closing."""
        with self._changed:
            while not self._closing:
                now_s = time.monotonic()
                for letter in self._letters:
                    if letter.due_s <= now_s:
                        self._letters.remove(letter)
                        return letter
                due_s = min((letter.due_s for letter in self._letters), default=None)
                self._changed.wait(None if due_s is None else due_s - now_s)
            return None

    def _deliver(self, letter: _Letter) -> str:
        """Post once; returns what went wrong."""
        body = payload(letter.event, letter.hook.format)
        headers = {"Content-Type": "application/json", "User-Agent": "osd"}
        if secret := self._secrets.get(letter.hook.secret_env, ""):
            headers["X-OSD-Signature"] = signature(secret, int(self._clock_s()), body)
        try:
            status = self._post(letter.hook.url, body, headers)
        except OSError as error:
            return f"no answer: {error}"
        return "" if 200 <= status < 300 else f"HTTP {status}"

    def _bury(self, letter: _Letter, problem: str) -> None:
        where = letter.hook.url.split("?")[0]
        message = f"an alert could not be delivered to {where}: {problem}"
        _log.error("%s", message)
        data = {**letter.event.data, "url": where, "undelivered": letter.event.message}
        self._on_dead(Event(at_s=self._clock_s(), kind="dead_letter", message=message, data=data))
