"""An engine actor without Ray: a handle whose calls return futures, and a process that can die or lose replies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from actors.calls.handle import ActorAwayError
from actors.engine.mailbox import Mailboxes
from osd.records.errors import QueueFullError
from osd.records.query import Request, TokenDelta


def text_of(token: int) -> str:
    return f"{token} "


@dataclass
class FakeEngine:
    """The actor's side: a query is answered with the numbers from 0 on, one token per step, also after a resumption."""

    room: int = 100
    clock: Callable[[], float] = lambda: 0.0
    submitted: list[Request] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    running: dict[str, tuple[Request, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mailboxes = Mailboxes(gone_after_s=30.0, clock=self.clock)
        self.mailboxes.attach()

    async def submit(self, client_id: str, request: Request) -> str:
        box_id = self.mailboxes.open(client_id)
        if self.mailboxes.holds(client_id, request.request_id):
            return box_id
        if len(self.running) >= self.room:
            raise QueueFullError("no room")
        self.submitted.append(request)
        self.running[request.request_id] = (request, len(request.resume_ids))
        self.mailboxes.expect(client_id, request.request_id)
        await asyncio.sleep(0)
        return box_id

    async def poll(
        self, client_id: str, wait_s: float, box_id: str | None, num_received: int
    ) -> tuple[str, list[TokenDelta]]:
        return await self.mailboxes.poll(client_id, wait_s, box_id, num_received)

    async def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        self.running.pop(request_id, None)

    async def step(self, num_steps: int = 1) -> None:
        """Make `num_steps` steps of one token for every query, then let the consequences happen."""
        for _ in range(num_steps):
            deltas = []
            for request_id, (request, token) in list(self.running.items()):
                ends = token + 1 == request.params.max_tokens
                self.running[request_id] = (request, token + 1)
                if ends:
                    del self.running[request_id]
                deltas.append(
                    TokenDelta(
                        request_id=request_id,
                        token_ids=(token,),
                        text=text_of(token),
                        finish_reason="length" if ends else None,
                    )
                )
            self.mailboxes.post(deltas)
            await settle()


class FakeHandle:
    """An `ActorHandle` whose process can be replaced or stopped."""

    def __init__(self, actor: Any) -> None:
        self.actor: Any | None = actor
        self.lost_replies: list[str] = []
        """Names of methods whose next call is executed, but whose reply is lost."""
        self.dies_in: list[str] = []
        """Names of methods whose next call is executed, after which the process dies before it replies."""
        self.num_calls = 0
        self._calls: set[asyncio.Task[Any]] = set()

    async def replace(self, actor: Any | None) -> None:
        """Kill the process with all its calls, and start another; None leaves the actor down."""
        self.actor = actor
        for call in self._calls:
            call.cancel()
        await settle()

    def call(self, method: str, *args: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(self._call(method, *args), asyncio.get_running_loop())

    async def _call(self, method: str, *args: Any) -> Any:
        self.num_calls += 1
        if self.actor is None:
            raise ActorAwayError("it is restarting")
        task = asyncio.ensure_future(getattr(self.actor, method)(*args))
        self._calls.add(task)
        try:
            result = await task
        except asyncio.CancelledError:
            raise ActorAwayError("it died") from None
        finally:
            self._calls.discard(task)
        if method in self.dies_in:
            self.dies_in.remove(method)
            self.actor = None
            raise ActorAwayError("it died")
        if method in self.lost_replies:
            self.lost_replies.remove(method)
            raise ActorAwayError("the connection broke")
        return result


async def settle() -> None:
    """Let all tasks run that can go on without waiting for the clock."""
    for _ in range(50):
        await asyncio.sleep(0)
