"""The Ray driver, a separate process: `python -m actors.driver.driver FD`, started by `driver_process.py`.

Ray ends the driver's process when Ray's own processes die, so the driver must not be the process that holds the
clients' connections. It starts a local Ray, creates the actors, and forwards calls and answers.

waits for: calls from the server
is unblocked by: a call, or the end of the pipe, which means that the server closed it or died; then it stops everything
on failure: it sends the reason and ends; the process that started it kills what is left of its session
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial

import psutil

from actors.calls.handle import ActorHandle
from actors.calls.link import Answer, Call, Ended, Link, Order, Ready, Stage
from actors.cluster.local_ray import check_closed, check_version
from actors.driver.start_actors import start_actors, start_ray
from actors.process.session import has_ended, kill_session
from osd.machine.logs import join_logs
from osd.records.errors import OsdError, reason

_CHECK_S = 0.2
_VITAL = ("gcs_server", "raylet")
"""Ray cannot work without these processes."""


def main() -> None:
    """Run until the server closes the pipe."""
    join_logs("driver")
    end = socket.socket(fileno=int(sys.argv[1]))
    end.set_inheritable(False)  # else Ray's processes would inherit it and keep it open
    link = Link(end)
    started = threading.Event()
    threading.Thread(target=end_with_server, args=(os.getppid(), started), daemon=True).start()
    try:
        with ExitStack() as stack:
            order: Order = link.receive()
            link.send(Stage("starting Ray", 0.3))
            check_version()
            start_ray(order.config, stack)
            watch_ray(link, stack)
            link.send(Stage("starting the engine", 0.5))
            actors, engine = start_actors(order, stack, lambda line: link.send(Stage(line, 0.6)))
            check_closed(os.getsid(0))
            started.set()
            link.send(Ready(engine))
            carry_calls(link, actors)
    except OsdError as error:
        with suppress(OSError):
            link.send(Ended(str(error)))
    except (EOFError, ConnectionError):
        pass  # the server is gone
    except Exception as error:
        with suppress(OSError):
            link.send(Ended(f"{type(error).__name__}: {reason(error)}"))
        raise


def end_with_server(server: int, started: threading.Event) -> None:
    """End this session if the server dies while nothing reads the pipe, since loading may take minutes."""
    while not started.wait(_CHECK_S):
        if os.getppid() != server:
            kill_session(os.getsid(0))
            os._exit(1)


def watch_ray(link: Link, stack: ExitStack) -> None:
    """End this process as soon as one of Ray's vital processes dies; Ray itself takes a minute to notice."""
    vital = {child.name(): child for child in psutil.Process().children() if child.name() in _VITAL}
    stopping = threading.Event()
    watcher = threading.Thread(target=_watch, args=(link, vital, stopping), name="osd-watch-ray", daemon=True)
    watcher.start()
    stack.callback(watcher.join)
    stack.callback(stopping.set)


def _watch(link: Link, vital: dict[str, psutil.Process], stopping: threading.Event) -> None:
    while not stopping.wait(_CHECK_S):
        for name, process in vital.items():
            if has_ended(process):
                with suppress(OSError):
                    link.send(Ended(f"its {name} died"))
                os._exit(1)


def carry_calls(link: Link, actors: dict[str, ActorHandle]) -> None:
    """Forward calls to the actors and answers back, until the pipe ends."""
    while True:
        try:
            call: Call = link.receive()
        except EOFError:
            return
        actors[call.actor].call(call.method, *call.args).add_done_callback(partial(_answer, link, call.number))


def _answer(link: Link, number: int, done: Future[object]) -> None:
    error = done.exception()
    answer = Answer(number, None if error else done.result(), _portable(error) if error else None)
    with suppress(OSError):  # the server is gone
        link.send(answer)


def _portable(error: BaseException) -> BaseException:
    """The error if it can be pickled and unpickled, else an error with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    main()
