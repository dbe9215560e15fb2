"""A local Ray is out of reach from other machines, and of no use to who has not its token."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from actors.process.session import listening, session_processes
from tests.e2e.conftest import Service

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.timeout(240)]
_JOIN = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False)
except Exception as error:
    print(type(error).__name__, error)
else:
    print("joined", ray.cluster_resources())
"""


@pytest.fixture
def session(service: Service) -> int:
    assert service.topology.driver.pid is not None
    return service.topology.driver.pid


def gcs_address(session: int) -> str:
    [(_, _, port)] = [each for each in listening(session) if each[0].name() == "gcs_server"]
    return f"127.0.0.1:{port}"


def other_addresses() -> list[str]:
    """Of this machine: all of 127/8 is, and whatever its network cards have."""
    found = [one.address for each in psutil.net_if_addrs().values() for one in each if one.family == socket.AF_INET]
    return ["127.0.0.2", *(address for address in found if not address.startswith("127."))]


def test_nothing_listens_beyond_loopback(session: int) -> None:
    found = [(process.name(), host.removeprefix("::ffff:"), port) for process, host, port in listening(session)]
    assert {name for name, _, _ in found} >= {"gcs_server", "raylet"}
    assert {host for _, host, _ in found} <= {"127.0.0.1", "::1"}, found
    # A socket that is bound to every address would take these connections.
    for address in other_addresses():
        for name, _, port in found:
            with socket.socket() as client:
                client.settimeout(5)
                assert client.connect_ex((address, port)) != 0, f"{name} takes connections to {address}:{port}"


def join(address: str, **environment: str) -> str:
    """What a program says that tries to join."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # The first: else Ray takes the loopback address for one of a network card. The second: it would try for 20 s.
    asked = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_NUM_REDIS_GET_RETRIES": "1"}
    environment = {**inherited, **asked, **environment}
    done = subprocess.run(
        [sys.executable, "-c", _JOIN, address], env=environment, capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "environment", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}]
)
def test_who_lacks_the_token_is_refused(session: int, environment: dict[str, str], tmp_path: Path) -> None:
    said = join(gcs_address(session), HOME=str(tmp_path), **environment)
    assert "Authentication token is missing or incorrect" in said and "joined" not in said, said


def test_the_agent_that_starts_processes_asks_for_the_token_too(session: int) -> None:
    [port] = [port for process, _, port in listening(session) if "RuntimeEnvAgent" in " ".join(process.cmdline())]
    url = f"http://127.0.0.1:{port}/get_or_create_runtime_env"
    assert httpx.post(url).status_code == 401
    assert httpx.post(url, headers={"x-ray-authorization": "Bearer wrong"}).status_code == 403


def test_who_has_the_token_may_join(session: int) -> None:
    """So it was the token that was missing."""
    token = psutil.Process(session).environ()["RAY_AUTH_TOKEN"]
    assert "joined" in join(gcs_address(session), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)


def test_the_token_is_in_no_command_line_and_no_log(session: int) -> None:
    token = psutil.Process(session).environ()["RAY_AUTH_TOKEN"]
    lines = [" ".join(process.cmdline()) for process in session_processes(session)]
    assert not any(token in line for line in lines)
    [folder] = {part.partition("=")[2] for line in lines for part in line.split() if part.startswith("--log_dir=")}
    logs = [file for file in Path(folder).rglob("*") if file.is_file()]
    assert logs
    assert not any(token.encode() in file.read_bytes() for file in logs)
