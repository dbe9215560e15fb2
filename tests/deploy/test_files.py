"""What the tools of Docker, Prometheus, Redis, Ray and YAML say of the files."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import yaml

from osd.io.find_redis import find_redis_server
from osd.io.outcome_stream import RedisOutcomeStream
from tests.kit.deploy_files import DEPLOY, documents, run_tool
from tests.kit.outcome_samples import sample_outcome

_SECRETS = {"REDIS_PASSWORD": "a", "OSD_ADMIN_TOKEN": "b", "GRAFANA_PASSWORD": "c"}
_ROOT = DEPLOY.parent


def test_yaml_is_clean() -> None:
    run_tool("yamllint", "-s", "-c", DEPLOY / "yamllint.yaml", DEPLOY, had_from="osd[deploy]")


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
    ids=" ".join,
)
def test_prometheus_takes_its_files(arguments: tuple[str, ...]) -> None:
    *command, file = arguments
    run_tool("promtool", *command, DEPLOY / "prometheus" / file, had_from="Debian's package prometheus")


def test_rule_tests_notice_a_changed_rule(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY / "prometheus", tmp_path, dirs_exist_ok=True)
    rules = (tmp_path / "alerts.yml").read_text()
    assert "> 0.05" in rules
    (tmp_path / "alerts.yml").write_text(rules.replace("> 0.05", "> 0.5"))
    with pytest.raises(AssertionError, match="OsdRefusesQueries"):
        run_tool("promtool", "test", "rules", tmp_path / "alerts_test.yml", had_from="Debian's package prometheus")


def test_the_dockerfile_is_clean() -> None:
    run_tool("hadolint", DEPLOY / "docker" / "Dockerfile", had_from="osd[deploy]")


def test_the_dockerfile_copies_every_package_and_runs_as_nobody_special() -> None:
    lines = (DEPLOY / "docker" / "Dockerfile").read_text().splitlines()
    copied = {line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line}
    assert {"osd", "trainer", "actors", "serving"} <= copied
    assert all((_ROOT / name).exists() for name in copied)
    ignored = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "osd",
        "trainer",
        "actors",
        "serving",
    }
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 10001:10001"
    assert any(line.startswith("HEALTHCHECK ") for line in lines)


@pytest.mark.parametrize("files", [("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")], ids=" ".join)
def test_compose_takes_its_files(files: tuple[str, ...]) -> None:
    arguments = [argument for file in files for argument in ("-f", str(DEPLOY / "compose" / file))]
    run_tool("docker-compose", *arguments, "config", "--quiet", had_from="osd[deploy]", **_SECRETS)


def test_compose_mounts_what_is_there() -> None:
    (compose,) = documents(DEPLOY / "compose" / "compose.yaml")
    mounts = [mount for service in compose["services"].values() for mount in service.get("volumes", [])]
    paths = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert len(paths) == 4
    assert all((DEPLOY / "compose" / path).exists() for path in paths)
    named = {mount.split(":")[0] for mount in mounts} - set(paths)
    assert named == compose["volumes"].keys()


def test_rays_launcher_takes_its_file() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    (cluster,) = documents(DEPLOY / "ray" / "cluster.yaml")
    util.validate_config(util.prepare_config(cluster))


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A server with the deployed configuration, but for its port and folder."""
    socket = tmp_path / "s"
    overrides = ["--port", "0", "--unixsocket", str(socket), "--requirepass", "secret"]
    command = [str(find_redis_server()), str(DEPLOY / "redis" / "redis.conf"), *overrides]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = []
        for line in server.stdout:
            said.append(line)
            if "ready to accept connections" in line.lower():
                break
        else:
            pytest.fail("".join(said))
        try:
            yield f"unix://:secret@{socket}?db=0"
        finally:
            server.terminate()
            server.communicate()


@pytest.mark.redis
def test_redis_takes_its_file_and_keeps_what_it_is_given(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        settings = client.config_get("*")
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["appendonly"] == "yes"
        assert int(settings["maxmemory"]) == 512 << 20
    stream = RedisOutcomeStream(redis_url, "osd:outcomes", max_entries=10, max_bytes=1 << 20)
    stream.check()
    stream.put(sample_outcome("q"))
    deadline_s = time.monotonic() + 10
    while not (delivered := stream.read(1, 100)):
        assert time.monotonic() < deadline_s
    assert [outcome.request_id for _, outcome in delivered] == ["q"]
    stream.close()


def test_the_secrets_that_compose_asks_for_are_in_the_example() -> None:
    example = (DEPLOY / "compose" / ".env.example").read_text()
    assert all(f"\n{name}=" in f"\n{example}" for name in _SECRETS)
    (compose,) = documents(DEPLOY / "compose" / "compose.yaml")
    assert set(_SECRETS) <= {name for name in _SECRETS if f"${{{name}:?" in yaml.safe_dump(compose)}
