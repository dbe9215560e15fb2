"""osd on several machines, each with its own address, processes and disk: deployed, cut off, lost.

What they share is what the guide asks for: a Redis and an object store that all of them reach, and one token of Ray.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest
import redis
import yaml

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)
pytest.importorskip("s3fs", reason="not installed (osd[s3])")
pytest.importorskip("moto.server", reason="moto with its server is not installed")

from benchmarks.fleet.load import streaming_load
from osd.config.paths import weights_path
from osd.config.settings import load_config
from osd.io.find_redis import find_redis_server
from osd.io.url_folder import open_folder
from osd.io.weight_store import FileWeightStore
from tests.e2e.cluster.conftest import ADMIN_TOKEN, NUM_CLIENTS, NUM_TOKENS, PROMPTS, reference_answers, settings
from tests.kit.machines import Machine, Network, network
from tests.kit.saved_models import save_llama
from tests.kit.waiting import PATIENCE_S, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.redis, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]
_ROOT = Path(__file__).parents[2]
_RAY_PORT, _HTTP_PORT, _S3_PORT, _REDIS_PORT = 6379, 8000, 5000, 6380
_PASSWORD, _BUCKET = "a password", "osd-test"
_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
_SERVES: dict[str, float] = {"serves": 1}
_LEARNS: dict[str, float] = {"serves": 1, "learns": 1}
_QUICK_TRAINER = {
    "nice": 0,
    "max_utilisation": 1.0,
    "min_records": 4,
    "held_out_share": 0.3,
    "gate_every_steps": 5,
    "warmup_steps": 5,
}


def _environment(home: Path) -> dict[str, str]:
    """Of all processes on the machines of a cluster."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("OSD_", "RAY_"))},
        **_KEYS,
        "HOME": str(home),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),
        "PYTHONPATH": str(_ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "cd" * 32,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_worker_niceness": "0",
        # A machine that says nothing for some ten seconds is given up; by default that takes a minute.
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_timeout_ms": "1500",
    }


@dataclass
class _Site:
    """A cluster of three machines, and one beside it with Redis and the object store."""

    network: Network
    environment: dict[str, str]
    head: Machine
    left: Machine
    right: Machine
    services: Machine
    file: Path
    """osd's settings."""
    values: dict[str, Any]
    """The same."""

    @property
    def url(self) -> str:
        return f"http://{self.head.address}:{_HTTP_PORT}"

    @property
    def ray_address(self) -> str:
        return f"{self.head.address}:{_RAY_PORT}"

    def join(self, machine: Machine, resources: dict[str, float], *, starts: bool = False) -> None:
        """Make a machine a node, by Ray's own command; the first one starts the cluster."""
        role = ["--head", f"--port={_RAY_PORT}", "--dashboard-host=0.0.0.0"]
        role = role if starts else [f"--address={self.ray_address}"]
        limits = ["--num-cpus=4", f"--object-store-memory={80 << 20}", f"--resources={json.dumps(resources)}"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *role, *limits]
        told = machine.run(*command, environment=self.environment)
        assert told.returncode == 0, told.stdout + told.stderr

    def osd_serve(self, machine: Machine, *flags: str, **environment: str) -> tuple[int, str, str]:
        """Run `osd serve` there; returns its exit status and what it printed, and the errors that it printed."""
        command = [sys.executable, "-m", "serving.cli.app", "serve", "--ray-address", self.ray_address]
        command += ["--config", str(self.file), *flags]
        told = machine.run(*command, environment={**self.environment, **environment})
        return told.returncode, told.stdout, told.stderr

    def admin(self, path: str) -> Any:
        """What the admin API answers; None while it does not."""
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        answer = httpx.get(f"{self.url}/admin/api/{path}", headers=headers, timeout=60)
        return answer.json() if answer.status_code == 200 else None

    def engines(self) -> dict[str, str]:
        """Engines that report, and the node of each."""
        return {one["engine_id"]: one["node"] for one in self.admin("engines") or []}

    def training_steps(self) -> int:
        """Of the distiller that trains now."""
        status = self.admin("status")
        return int(status["trainer"]["steps"]) if status and status["trainer"] else 0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Site]:
    folder = tmp_path_factory.mktemp("site")
    disk, target = folder / "disk", save_llama(folder / "tiny", context_tokens=1024)
    with network([Path("/tmp/ray"), disk]) as net:
        head, left, right, services = (net.add(name) for name in ("head", "left", "right", "services"))
        redis_server = [find_redis_server(), "--bind", "0.0.0.0", "--port", _REDIS_PORT, "--requirepass", _PASSWORD]
        services.start(*redis_server, "--appendonly", "yes", "--dir", disk)
        services.start(sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", _S3_PORT)
        values = settings(
            disk,
            f"redis://:{_PASSWORD.replace(' ', '%20')}@{services.address}:{_REDIS_PORT}/0",
            target={"model": str(target)},
            store={
                "url": f"s3://{_BUCKET}/drafters",
                "options": {"endpoint_url": f"http://{services.address}:{_S3_PORT}"},
            },
            server={"host": "0.0.0.0", "port": _HTTP_PORT},
            trainer=_QUICK_TRAINER,
            cluster={"num_ingress": 1},
        )
        file = folder / "osd.yaml"
        file.write_text(json.dumps(values))  # JSON is YAML
        made = _Site(net, _environment(disk / "home"), head, left, right, services, file, values)
        _make_bucket(values["store"]["options"])
        made.join(head, {"front": 1}, starts=True)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(made.join, (left, right), (_SERVES, _LEARNS)))
        yield made


def _make_bucket(options: dict[str, Any]) -> None:
    files = fsspec.filesystem("s3", key="test", secret="test", **options)

    def make() -> bool:
        try:
            files.makedirs(_BUCKET, exist_ok=True)
        except OSError:
            return False
        return True

    wait_for(make, "the object store to answer")


def test_what_is_on_one_machine_only_is_refused_and_so_is_who_is_no_node(site: _Site) -> None:
    refusals = [
        (site.left, ["--store.url", ""], {}, "the cluster has nodes on 3 machines, and drafter versions would be in"),
        (site.left, ["--redis-url", "redis://127.0.0.1:6379/0"], {}, "the cluster has nodes on 3 machines, and outcom"),
        (site.services, [], {}, "no node of the Ray cluster"),
        (site.left, [], {"RAY_AUTH_TOKEN": "ef" * 32}, f"the Ray cluster {site.ray_address!r} asks for another token"),
    ]
    for machine, flags, environment, says in refusals:
        status, _, errors = site.osd_serve(machine, *flags, **environment)
        assert status == 2 and errors.startswith(f"error: {says}") and errors.count("\n") == 1, errors


def test_a_machine_that_is_cut_off_loses_no_query_and_trains_no_more(site: _Site) -> None:
    """It has one of two engines and the distiller. Another machine joins in its place, then the cable is plugged in."""
    with ThreadPoolExecutor(1) as beside:
        expected = beside.submit(reference_answers, site.file.parent)
        status, printed, errors = site.osd_serve(site.left)
        assert status == 0, printed + errors
    with httpx.Client(base_url=site.url, timeout=60) as client:
        wait_for(lambda: client.get("/ready").status_code == 200, "osd to be ready")
        (model,) = client.get("/v1/models").json()["data"]
    assert httpx.get(f"http://{site.left.address}:{_HTTP_PORT}/health", timeout=60).status_code == 200
    before = wait_for(lambda: _two_nodes(site), "an engine on each of two machines")
    outcomes = redis.Redis.from_url(site.values["outcomes"]["redis_url"])
    with outcomes, streaming_load(site.url, model["id"], PROMPTS, NUM_TOKENS, NUM_CLIENTS) as load:
        load.wait_until_all_stream()
        wait_for(lambda: site.admin("status")["trainer"]["gate"], "the distiller to come to its gate")
        holder = outcomes.get("osd:outcomes:distiller")
        site.network.cut(site.right)
        spare = site.network.add("spare")
        site.join(spare, _LEARNS)
        after = wait_for(lambda: _replaced(site, before), "an engine on the new machine", 200)
        assert len(set(after) & set(before)) == 1, "the engine on the other machine goes on"
        wait_for(lambda: outcomes.get("osd:outcomes:distiller") not in (None, holder), "another distiller", 200)
        steps = site.training_steps()
        wait_for(lambda: site.training_steps() > max(steps, 0), "it to train")
        site.network.mend(site.right)
        wait_for(lambda: not _ray_processes(site.right), "the machine that was given up to end its processes", 200)
        load.wait_for_answers(len(load.answers) + NUM_CLIENTS)
    answers = expected.result(PATIENCE_S)
    assert not load.lost(answers)
    assert {one.num_tokens for one in load.answers} == {NUM_TOKENS}
    assert {one.num_attempts for one in load.answers} == {1}
    longest_s = max(one.longest_pause_s for one in load.answers)
    sys.stdout.write(f"\na machine cut off: {len(load.answers)} queries, longest pause {longest_s:.1f} s\n")
    assert set(site.engines()) == set(after)
    _check_versions(site)


def test_serves_own_command_updates_it_from_a_machine_beside_the_cluster(site: _Site, tmp_path: Path) -> None:
    """Given twice, nothing changes the second time."""
    args = {name: section for name, section in site.values.items() if name != "server"}
    args["server"] = {"admin_token_sha256": site.values["server"]["admin_token_sha256"], "model_names": ["by-file"]}
    application = {"name": "osd", "route_prefix": "/", "import_path": "serving.ray_serve:build", "args": args}
    file = tmp_path / "serve.yaml"
    http = {"host": "0.0.0.0", "port": _HTTP_PORT}
    file.write_text(json.dumps({"proxy_location": "EveryNode", "http_options": http, "applications": [application]}))
    dashboard = f"http://{site.head.address}:8265"
    command = [sys.executable, "-m", "ray.serve.scripts"]
    found: list[dict[str, str]] = []
    for _ in range(2):
        told = site.services.run(*command, "deploy", "--address", dashboard, file, environment=site.environment)
        assert told.returncode == 0, told.stdout + told.stderr

        def status() -> dict[str, Any]:
            said = site.services.run(*command, "status", "--address", dashboard, environment=site.environment)
            applications: dict[str, Any] = yaml.safe_load(said.stdout)["applications"] if not said.returncode else {}
            assert applications.keys() <= {"osd"}
            return dict(applications.get("osd", {}))

        wait_for(lambda: status().get("status") == "RUNNING", "the update to be made", 300)
        found.append(wait_for(lambda: _two_nodes(site), "two engines"))
        answer = httpx.get(f"{site.url}/v1/models", timeout=60).json()
        assert [one["id"] for one in answer["data"]] == ["by-file"]
    assert found[0] == found[1]


def _two_nodes(site: _Site) -> dict[str, str]:
    engines = site.engines()
    return engines if len(set(engines.values())) == 2 else {}


def _replaced(site: _Site, before: dict[str, str]) -> dict[str, str]:
    """Two engines of which one is new, once there are no others."""
    engines = site.engines()
    return engines if len(engines) == 2 and set(engines) != set(before) else {}


def _ray_processes(machine: Machine) -> list[str]:
    return [line for line in machine.command_lines() if "raylet" in line or line.startswith("ray::")]


def _check_versions(site: _Site) -> None:
    """Every version in the store is whole, and their fences never fall."""
    store = {**site.values["store"], "options": {**site.values["store"]["options"], "key": "test", "secret": "test"}}
    config = load_config(flags={"state_dir": site.file.parent / "here", "store": store})
    versions = FileWeightStore(open_folder(config, weights_path("tiny", "feature")))
    manifests = sorted(versions.list(), key=lambda manifest: manifest.number)
    assert manifests
    for manifest in manifests:
        versions.load(manifest.number)
    fences = [manifest.fence for manifest in manifests]
    assert fences == sorted(fences)
