"""The Ray driver's part of a call: over the pipe, to the actor, and back, with Ray's errors as ours."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import ray.exceptions

from actors.calls.handle import ActorAwayError
from actors.calls.link import Answer, Call, Ended, Link, Order, Stage
from actors.calls.ray_handle import RayHandle
from actors.driver import driver
from actors.driver.driver import carry_calls
from actors.driver.driver_process import DriverProcess
from actors.process.session import kill_session, session_processes
from osd.config.settings import load_config
from osd.records.errors import OsdError, QueueFullError
from tests.kit.waiting import wait_for


class UnreadableError(Exception):
    """Pickles, but cannot be read again: its arguments are not those of its constructor."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


def handle(outcome: object) -> RayHandle:
    """Of an actor whose every method returns this, or fails with it, as Ray tells it."""
    done: Future[Any] = Future()
    if isinstance(outcome, ray.exceptions.RayError):
        done.set_exception(outcome)
    elif isinstance(outcome, Exception):
        done.set_exception(ray.exceptions.RayTaskError("method", "a traceback", outcome).as_instanceof_cause())
    else:
        done.set_result(outcome)
    reference = SimpleNamespace(future=lambda: done)
    return RayHandle(SimpleNamespace(method=SimpleNamespace(remote=lambda *args: reference)))


def test_an_actors_own_error_arrives_unwrapped() -> None:
    error = handle(QueueFullError("no room")).call("method").exception(1)
    assert type(error) is QueueFullError and str(error) == "no room"


@pytest.mark.parametrize("error", [ray.exceptions.ActorDiedError(), ray.exceptions.ActorUnavailableError("away", None)])
def test_an_actor_that_is_gone_is_away(error: Exception) -> None:
    assert isinstance(handle(error).call("method").exception(1), ActorAwayError)


@pytest.fixture
def server() -> Iterator[Link]:
    """The server's end of a pipe to a driver with some actors."""
    actors = {
        "well": handle(7),
        "full": handle(QueueFullError("no room")),
        "odd": handle(UnreadableError(5, "strange")),
    }
    ours, theirs = (Link(end) for end in socket.socketpair())
    thread = threading.Thread(target=carry_calls, args=(theirs, actors))
    thread.start()
    yield ours
    ours.end()
    thread.join(20)
    assert not thread.is_alive(), "the driver ends with the server"
    ours.close()
    theirs.close()


def ask(server: Link, actor: str) -> Answer:
    server.send(Call(3, actor, "method", ("argument",)))
    answer: Answer = server.receive()
    assert answer.number == 3
    return answer


def test_a_result_comes_back(server: Link) -> None:
    assert ask(server, "well") == Answer(3, 7, None)


def test_an_error_comes_back(server: Link) -> None:
    error = ask(server, "full").error
    assert type(error) is QueueFullError and str(error) == "no room"


def test_an_error_that_cannot_be_carried_comes_back_as_its_text(server: Link) -> None:
    error = ask(server, "odd").error
    assert type(error) is RuntimeError and str(error) == "UnreadableError: 5: strange"
    assert ask(server, "well").value == 7


_SERVER = (
    "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True); input()"
)
_DRIVER = """
import os, subprocess, sys, threading
from actors.driver.driver import end_with_server
server = os.getppid()
subprocess.Popen(["sleep", "600"])
print(os.getpid(), flush=True)
end_with_server(server, threading.Event())
"""


def test_a_driver_that_still_starts_ends_with_its_server_and_takes_along_what_it_started() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, _DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        session = int(server.stdout.readline())
        try:
            assert {process.name() for process in session_processes(session)} >= {"sleep"}
            server.kill()
            wait_for(lambda: not session_processes(session), "the session to end")
        finally:
            kill_session(session)


def test_a_driver_takes_no_module_from_the_folder_that_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secrets.py").write_text("raise SystemExit('not the standard library')")
    monkeypatch.chdir(tmp_path)
    config = load_config(flags={"cluster": {"address": "127.0.0.1:1"}})
    process = DriverProcess(Order(config, "redis://", None))
    try:
        assert process.link.receive() == Stage("starting Ray", 0.3)
    finally:
        process.close(0.0)


@pytest.mark.parametrize("check", ["check_version", "check_closed"])
def test_a_ray_that_others_may_use_serves_nobody(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one without tokens, nor one that listens beyond this machine."""

    def refuse(*_: object) -> NoReturn:
        raise OsdError("it is open")

    for name in ("start_ray", "watch_ray", "end_with_server", "check_closed", "carry_calls"):
        monkeypatch.setattr(driver, name, lambda *_: None)
    monkeypatch.setattr(driver, "start_actors", lambda *_: ({}, None))
    monkeypatch.setattr(driver, check, refuse)
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(driver, "socket", SimpleNamespace(socket=lambda fileno: theirs))
    monkeypatch.setattr(sys, "argv", ["driver", "0"])
    with ours, theirs:
        link = Link(ours)
        link.send(Order(config=load_config(), redis_url="", training_paused=None))
        driver.main()
        messages = [link.receive()]
        while isinstance(messages[-1], Stage):
            messages.append(link.receive())
    assert messages[-1] == Ended("it is open")
