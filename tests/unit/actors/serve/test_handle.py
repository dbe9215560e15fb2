"""Serve's handles as the client's: results, errors, and the status of all engines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import pytest
import ray.exceptions

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)

from actors.calls.handle import ActorAwayError
from actors.serve.handle import EnginesHandle, ServeHandle
from actors.serve.router import Tries
from osd.records.errors import UnknownVersionError
from osd.records.status import EngineStatus


@dataclass
class _Deployment:
    """A Serve handle; whatever method is called, `answer` says what it returns or raises."""

    answer: Callable[..., Any]
    methods: list[str] = field(default_factory=list)

    def __getattr__(self, method: str) -> Self:
        self.methods.append(method)
        return self

    def remote(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        async def respond() -> Any:
            return self.answer(*args, **kwargs)

        return respond()


def _raise(error: Exception) -> Any:
    raise error


async def test_a_result_is_passed_on() -> None:
    deployment = _Deployment(lambda one, other: one + other)
    assert await asyncio.wrap_future(ServeHandle(deployment).call("add", 1, 2)) == 3
    assert deployment.methods == ["add"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ray.exceptions.ActorDiedError(), ActorAwayError),
        (
            ray.exceptions.RayTaskError("roll_back", "traceback", UnknownVersionError("no 7")).as_instanceof_cause(),
            UnknownVersionError,
        ),
    ],
)
async def test_an_error_is_passed_on_unwrapped(raised: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected) as told:
        await asyncio.wrap_future(ServeHandle(_Deployment(lambda: _raise(raised))).call("roll_back"))
    assert type(told.value) is expected


def _status(running: int) -> EngineStatus:
    return EngineStatus(
        target="t",
        drafter_kind="none",
        drafter_version=0,
        running=running,
        waiting=0,
        max_slots=4,
        context_tokens=128,
        utilisation=0.0,
        speculation_length=0,
        speculation_enabled=False,
        uptime_s=1.0,
    )


async def test_an_engine_that_dies_is_left_out_of_the_status() -> None:
    def answer(tries: Tries) -> tuple[str, EngineStatus]:
        return ("a", _status(3)) if not tries.avoid else _raise(ray.exceptions.ActorDiedError())

    whole: EngineStatus = await asyncio.wrap_future(EnginesHandle(_Deployment(answer)).call("status"))
    assert whole == _status(3)
    none = EnginesHandle(_Deployment(lambda **_: _raise(ray.exceptions.ActorDiedError())))
    with pytest.raises(ActorAwayError):
        await asyncio.wrap_future(none.call("status"))


async def test_every_engine_is_asked_for_its_status() -> None:
    engines = {"a": _status(1), "b": _status(2), "c": _status(3)}

    def answer(tries: Tries) -> tuple[str, EngineStatus]:
        name = next((name for name in engines if name not in tries.avoid), "b")
        return name, engines[name]

    whole: EngineStatus = await asyncio.wrap_future(EnginesHandle(_Deployment(answer)).call("status"))
    assert (whole.running, whole.max_slots) == (6, 12)
