"""What keeps a local Ray closed: the environment it is started with, and the checks that refuse one that is open."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from actors.cluster.local_ray import check_closed, check_version, driver_environment
from actors.process.session import listening
from osd.records.errors import OsdError


def test_a_local_ray_is_given_a_fresh_token_and_the_loopback_address() -> None:
    given = {
        "RAY_ADDRESS": "auto",
        "RAY_AUTH_MODE": "disabled",
        "RAY_AUTH_TOKEN": "known to others",
        "RAY_AUTH_TOKEN_PATH": "/somewhere",
        "RAY_worker_niceness": "3",
        "HOME": "/home",
    }
    first, second = (driver_environment(given) for _ in range(2))
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(bytes.fromhex(first["RAY_AUTH_TOKEN"])) == 32
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    assert first["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"} & first.keys()
    assert (first["HOME"], first["RAY_worker_niceness"]) == ("/home", "3"), "the operator's own choices stand"


@pytest.mark.parametrize("version", ["2.50.1", "2.51.2", "1.13.0"])
def test_a_ray_without_tokens_is_refused(version: str) -> None:
    with pytest.raises(OsdError, match=rf"Ray {version} .*install ray>=2.52") as caught:
        check_version(version)
    assert "\n" not in str(caught.value)


def test_a_ray_with_tokens_is_taken() -> None:
    for version in ("2.52.0", "2.60.0", "3.0.0rc1"):
        check_version(version)
    check_version()


@contextmanager
def listener(host: str) -> Iterator[int]:
    """The session of a process that listens there, by a child of its own."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    serve = f"import socket; s = socket.socket({int(family)}); s.bind(({host!r}, 0)); s.listen(); print(flush=True)"
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1] + '; input()'])"
    command = [sys.executable, "-c", start, serve]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.communicate(b"\n")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_who_listens_beyond_this_machine_is_refused(host: str) -> None:
    with listener(host) as session:
        assert [at for _, at, _ in listening(session)] == [host]
        with pytest.raises(OsdError, match=rf"listens on {host}:\d+ .*, beyond this machine: install") as caught:
            check_closed(session)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_who_listens_only_locally_is_not(host: str) -> None:
    with listener(host) as session:
        assert [at for _, at, _ in listening(session)] == [host]
        check_closed(session)
