"""A query and its engines, as the ingress sees them: full, dead, silent, and the one that answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import pytest
import ray.exceptions

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)

from actors.serve.client import EnginePool
from actors.serve.engine import FullEngineError
from actors.serve.router import Tries
from osd.records.errors import EngineUnavailableError, PromptTooLongError, QueueFullError
from osd.records.query import Request, TokenDelta
from tests.kit.clock import Clock

_QUERY = Request(request_id="q", prompt_ids=(1, 2, 3))
_WORDS = ("a", "bc", "d", "e")


class _SilenceError(Exception):
    """Stands for an engine that says nothing."""


def _answer(request: Request, upto: int = len(_WORDS)) -> list[TokenDelta | Exception]:
    """What an engine says from where the query was resumed."""
    begin = len(request.resume_ids)
    return [
        TokenDelta(
            request_id=request.request_id,
            token_ids=(place,),
            text=_WORDS[place],
            finish_reason="stop" if place == len(_WORDS) - 1 else None,
        )
        for place in range(begin, upto)
    ]


@dataclass
class _Engines:
    """A Serve handle whose calls are answered by one script after another: deltas, and then perhaps an error."""

    scripts: list[Callable[..., list[TokenDelta | Exception]]]
    asked: list[tuple[Request, tuple[str, ...]]] = field(default_factory=list)
    """Each call's query and `avoid`; the first call went to `engine 1`, and so on."""
    kept_from: list[set[str]] = field(default_factory=list)
    """Each call's `silent`."""
    num_cancelled: int = 0

    def options(self, *, stream: bool) -> Self:
        assert stream
        return self

    @property
    def generate(self) -> Self:
        return self

    def remote(self, request: Request, *, prefix: tuple[int, ...], tries: Tries) -> _Stream:
        self.asked.append((request, tuple(tries.avoid)))
        self.kept_from.append(set(tries.silent))
        tries.last = f"engine {len(self.asked)}"
        return _Stream(self, self.scripts[min(len(self.asked), len(self.scripts)) - 1](request))


class _Stream:
    def __init__(self, engines: _Engines, script: list[TokenDelta | Exception]) -> None:
        self._engines, self._items = engines, self._say(script)

    async def _say(self, script: list[TokenDelta | Exception]) -> AsyncIterator[list[TokenDelta]]:
        for item in script:
            if isinstance(item, _SilenceError):
                await asyncio.Event().wait()
            if isinstance(item, Exception):
                raise item
            yield [item]

    def __aiter__(self) -> AsyncIterator[list[TokenDelta]]:
        return self._items

    def __anext__(self) -> Any:
        return self._items.__anext__()

    def cancel(self) -> None:
        self._engines.num_cancelled += 1


def _dies() -> Exception:
    died: Exception = ray.exceptions.ActorDiedError()
    return died


def _raised(cause: Exception) -> Exception:
    """As Ray passes on what a method raised."""
    raised: Exception = ray.exceptions.RayTaskError("generate", "traceback", cause).as_instanceof_cause()
    return raised


async def _text(pool: EnginePool) -> str:
    deltas = [delta async for delta in pool.generate(_QUERY)]
    assert {delta.request_id for delta in deltas} == {"q"}
    assert [token for delta in deltas for token in delta.token_ids] == list(range(len(_WORDS)))
    return "".join(delta.text for delta in deltas)


@pytest.mark.parametrize("end", [_dies(), _raised(EngineUnavailableError("stopping")), _SilenceError()])
async def test_an_answer_goes_on_where_its_engine_ended(end: Exception) -> None:
    engines = _Engines([lambda request: [*_answer(request, 2), end], _answer])
    pool = EnginePool(engines, silence_s=0.05, retry_s=0.0)
    assert await _text(pool) == "abcde"
    (first, _), (second, _) = engines.asked
    assert (first.request_id, first.resume_ids) == ("q", ())
    assert (second.request_id, second.resume_ids, second.resume_chars) == ("q.1", (0, 1), 3)
    assert engines.num_cancelled == 1


async def test_an_engine_that_hung_gets_no_query_for_a_while() -> None:
    """Neither the one that hung in it, nor others, though it may hold their prefix."""
    engines = _Engines([lambda request: [*_answer(request, 2), _SilenceError()], _answer])
    clock = Clock()
    pool = EnginePool(engines, silence_s=0.05, retry_s=0.0, clock=clock)
    assert await _text(pool) == await _text(pool) == "abcde"
    assert engines.kept_from == [set(), {"engine 1"}, {"engine 1"}]
    clock.now_s += 61
    assert await _text(pool) == "abcde"
    assert engines.kept_from[-1] == set()


async def test_a_query_in_progress_waits_for_a_full_engine_rather_than_for_one_that_hung() -> None:
    full: list[TokenDelta | Exception] = [_raised(FullEngineError("full", "engine 2"))]
    engines = _Engines([lambda _: [_SilenceError()], lambda _: full, lambda _: full, _answer])
    assert await _text(EnginePool(engines, silence_s=0.05, retry_s=0.0)) == "abcde"
    assert [avoid for _, avoid in engines.asked] == [(), (), ("engine 2",), ()]
    assert engines.kept_from == [set(), *[{"engine 1"}] * 3]


async def test_a_stream_that_ends_early_is_continued() -> None:
    engines = _Engines([lambda request: _answer(request, 1), _answer])
    assert await _text(EnginePool(engines, retry_s=0.0)) == "abcde"


async def test_a_full_engine_is_passed_by() -> None:
    engines = _Engines([lambda _: [_raised(FullEngineError("full", "one"))], _answer])
    assert await _text(EnginePool(engines)) == "abcde"
    assert [avoid for _, avoid in engines.asked] == [(), ("one",)]


async def test_a_query_is_refused_once_all_engines_are_full() -> None:
    names = iter(("one", "two", "one"))
    engines = _Engines([lambda _: [_raised(FullEngineError("the queue is full", next(names)))]])
    with pytest.raises(QueueFullError, match=r"^the queue is full$"):
        await _text(EnginePool(engines))
    assert [avoid for _, avoid in engines.asked] == [(), ("one",), ("one", "two")]


async def test_a_query_in_progress_waits_for_room() -> None:
    def full(_: Request) -> list[TokenDelta | Exception]:
        return [_raised(FullEngineError("full", "other"))]

    engines = _Engines([lambda request: [*_answer(request, 2), _dies()], full, full, _answer])
    assert await _text(EnginePool(engines, retry_s=0.0)) == "abcde"


async def test_what_an_engine_refuses_is_refused() -> None:
    engines = _Engines([lambda _: [_raised(PromptTooLongError("too long"))]])
    with pytest.raises(PromptTooLongError):
        await _text(EnginePool(engines))
    assert len(engines.asked) == 1


async def test_a_query_gives_up_after_a_while() -> None:
    seconds = iter(range(0, 1000, 50))
    pool = EnginePool(_Engines([lambda _: [_dies()]]), give_up_s=120, retry_s=0.0, clock=lambda: float(next(seconds)))
    with pytest.raises(EngineUnavailableError, match="no engine answered in time"):
        await _text(pool)


async def test_a_reader_that_leaves_cancels_its_query() -> None:
    engines = _Engines([_answer])
    deltas = EnginePool(engines).generate(_QUERY)
    await anext(deltas)
    await deltas.aclose()
    assert engines.num_cancelled == 1
