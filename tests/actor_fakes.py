"""An engine actor without Ray: a handle whose calls return futures, and a process that can die and lose replies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import ray.exceptions

from actors.mailbox import Mailboxes
from osd.types import QueueFullError, Request, TokenDelta


def text_of(token: int) -> str:
    return f"{token} "


@dataclass
class FakeEngine:
    """The actor's side: query "q" is answered with the numbers from 0 on, a token a step, whoever began to answer."""

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
        """One token for every query, so often; then time for what follows from it."""
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
    """What `ray.get_actor` gives: `handle.method.remote(…)`. Its process can be replaced, or be down."""

    def __init__(self, actor: Any) -> None:
        self.actor: Any | None = actor
        self.lost_replies: list[str] = []
        """Names of methods; the next call of each is carried out, but its reply does not arrive."""
        self.num_calls = 0
        self._calls: set[asyncio.Task[Any]] = set()

    async def replace(self, actor: Any | None) -> None:
        """Kill the process, with all its calls; None leaves the actor down."""
        self.actor = actor
        for call in self._calls:
            call.cancel()
        await settle()

    def __getattr__(self, name: str) -> FakeMethod:
        return FakeMethod(self, name)


@dataclass
class FakeMethod:
    handle: FakeHandle
    name: str

    def remote(self, *args: Any) -> FakeReference:
        return FakeReference(self._call(*args))

    async def _call(self, *args: Any) -> Any:
        handle = self.handle
        handle.num_calls += 1
        if handle.actor is None:
            raise ray.exceptions.ActorUnavailableError("it is restarting", None)
        task = asyncio.ensure_future(getattr(handle.actor, self.name)(*args))
        handle._calls.add(task)
        try:
            result = await task
        except asyncio.CancelledError:
            raise ray.exceptions.ActorDiedError() from None
        except Exception as error:
            raise ray.exceptions.RayTaskError(self.name, "a traceback", error).as_instanceof_cause() from None
        finally:
            handle._calls.discard(task)
        if self.name in handle.lost_replies:
            handle.lost_replies.remove(self.name)
            raise ray.exceptions.ActorUnavailableError("the connection broke", None)
        return result


@dataclass
class FakeReference:
    work: Coroutine[Any, Any, Any]

    def future(self) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(self.work, asyncio.get_running_loop())


async def settle() -> None:
    """Let everything that can go on without the clock go on."""
    for _ in range(50):
        await asyncio.sleep(0)
