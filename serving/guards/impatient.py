"""Closes connections whose client takes too long to send a request."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.wire.errors import ApiError

_Owed = Literal["headers", "body"]


def impatient(timeout_s: float) -> type[H11Protocol]:
    """Uvicorn's h11 protocol with time limits that uvicorn lacks, for `uvicorn.Config(http=…)`.

    Limited to `timeout_s` are: the headers, from connecting or from the first byte of a further request (then 408); and
    the rest of a body whose answer was sent before it had arrived. A body that a route waits for is timed by
    `serving.guards.admission`.
    """

    class Impatient(_ImpatientProtocol):
        """With this limit: uvicorn makes one a connection, and passes none."""

    Impatient.timeout_s = timeout_s
    return Impatient


class _ImpatientProtocol(H11Protocol):
    """See `impatient`."""

    timeout_s: float
    _owed: _Owed | None = None
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has been started or sent
            self._answer(ApiError(400, msg, code="invalid_http"))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owe(None)
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start, keep or cancel the deadline, by what the client has still to send."""
        theirs, ours = self.conn.their_state, self.conn.our_state
        if self.transport.is_closing():
            self._owe(None)
        elif theirs is h11.IDLE and (self.timeout_keep_alive_task is None or self.conn.trailing_data[0]):
            self._owe("headers")  # between two requests uvicorn's own, shorter limit applies
        elif theirs is h11.SEND_BODY and ours in (h11.DONE, h11.MUST_CLOSE):
            self._owe("body")
        else:
            self._owe(None)

    def _owe(self, owed: _Owed | None) -> None:
        if owed == self._owed:
            return
        self._owed = owed
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if owed is not None:
            self._deadline = self.loop.call_later(self.timeout_s, self._give_up)

    def _give_up(self) -> None:
        if self._owed == "headers" and self.conn.trailing_data[0]:
            text = f"The request's headers did not arrive within {self.timeout_s:g} s."
            self._answer(ApiError(408, text, code="request_timeout"))
        self.transport.close()

    def _answer(self, error: ApiError) -> None:
        body = json.dumps(error.body()).encode()
        headers: list[tuple[Any, Any]] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        reason = HTTPStatus(error.status).phrase.encode()
        head = h11.Response(status_code=error.status, reason=reason, headers=headers)
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
