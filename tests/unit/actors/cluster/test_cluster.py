"""What a cluster cannot run is refused in one line, before any actor is created."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.cluster.cluster import Node, check_application, check_cluster, check_free_gpus, refuse_gcs_as_redis
from osd.config.settings import Config, load_config
from osd.records.errors import OsdError

_ONE = [Node("10.0.0.1", 0)]
_THREE = [Node("10.0.0.1", 0), Node("10.0.0.2", 1), Node("10.0.0.3", 2)]
_REDIS = {"redis_url": "redis://redis:6379/0"}
_STORE = {"url": "s3://bucket/osd"}


def _config(**sections: dict[str, Any]) -> Config:
    return load_config(flags={"state_dir": Path("/state"), **sections})


def _check(nodes: list[Node], **sections: dict[str, Any]) -> None:
    config = _config(**sections)
    check_cluster(config, config.outcomes.redis_url or "unix:///state/redis/redis.sock", nodes)


def test_one_node_needs_nothing_shared() -> None:
    _check(_ONE)


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            {},
            "the cluster has nodes on 3 machines, and the embedded Redis can be reached from one of them only; set",
        ),
        ({"outcomes": {"redis_url": "unix:///run/redis.sock"}, "store": _STORE}, "names a Unix socket"),
        ({"outcomes": {"redis_url": "redis://127.0.0.1:6379"}, "store": _STORE}, "names 127.0.0.1, which is another"),
        ({"outcomes": {"redis_url": "redis://:pw@localhost"}, "store": _STORE}, "names localhost"),
        ({"outcomes": _REDIS}, "drafter versions would be in the folder /state of each; set store.url"),
    ],
)
def test_state_on_one_of_several_nodes_is_refused(sections: dict[str, Any], says: str) -> None:
    with pytest.raises(OsdError, match=says) as told:
        _check(_THREE, **sections)
    assert "\n" not in str(told.value) and "pw" not in str(told.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"outcomes": _REDIS, "store": _STORE},
        {"outcomes": _REDIS, "store": {"url": "/mnt/shared"}},
        {"outcomes": {"enabled": False}, "store": _STORE},
    ],
)
def test_several_nodes_that_share_their_state_are_fine(sections: dict[str, Any]) -> None:
    _check(_THREE, **sections)


@pytest.mark.parametrize(
    ("nodes", "sections", "says"),
    [
        (_ONE, {"target": {"device": "cuda"}}, "target.device is 'cuda', and no node of the cluster has a GPU; add"),
        (_ONE, {"trainer": {"device": "cuda:0"}}, "trainer.device is 'cuda:0', and no node"),
        (
            _THREE,
            {"target": {"device": "cuda:2"}, "outcomes": _REDIS, "store": _STORE},
            "no node of the cluster has more than 2 GPUs",
        ),
    ],
)
def test_a_gpu_that_no_node_has_is_refused(nodes: list[Node], sections: dict[str, Any], says: str) -> None:
    with pytest.raises(OsdError, match=says):
        _check(nodes, **sections)


def test_a_gpu_that_a_node_has_is_fine() -> None:
    _check(_THREE, target={"device": "cuda:1"}, outcomes=_REDIS, store=_STORE)
    _check(_ONE, trainer={"device": "cuda", "enabled": False})


def test_nodes_of_one_machine_share_it() -> None:
    _check([Node("10.0.0.1", 0), Node("10.0.0.1", 1)], outcomes={"redis_url": "redis://127.0.0.1:6379/0"})


_GPU = Node("10.0.0.1", 1, 4, {"CPU": 4, "GPU": 1, "fast": 2})
_CPU = Node("10.0.0.1", 0, 2, {"CPU": 2})


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        (
            {"outcomes": {}},
            "outcomes.redis_url is empty, .*; set outcomes.redis_url to .* or outcomes.enabled to false",
        ),
        ({"target": {"device": "cuda"}}, "Ray hides GPUs from engines that reserve none; set cluster.engine_num_gpus"),
        (
            {"target": {"device": "cuda:1"}, "cluster": {"engine_num_gpus": 1}},
            "Ray chooses each engine's GPU; set target.device to 'cuda'|no node of the cluster has more than 1 GPUs",
        ),
        ({"target": {"device": "cpu"}, "cluster": {"engine_num_gpus": 0.5}}, "engine_num_gpus is 0.5, and .* is 'cpu'"),
        ({"cluster": {"engine_num_cpus": 8}}, "no node of the cluster has the 8 CPU that .* cluster.engine_"),
        ({"cluster": {"engine_resources": {"slow": 1}}}, "has the 1 CPU and 1 slow that .* cluster.engine_"),
        ({"cluster": {"ingress_resources": {"slow": 1}}}, "has the 1 slow that .* cluster.ingress_"),
        ({"cluster": {"distiller_num_cpus": 3, "distiller_resources": {"fast": 3}}}, "3 CPU and 3 fast .*distiller_"),
        ({"cluster": {"supervisor_resources": {"slow": 1}}}, "cluster.supervisor_"),
    ],
)
def test_an_application_that_the_cluster_cannot_run_is_refused(sections: dict[str, Any], says: str) -> None:
    config = _config(**{"outcomes": _REDIS, **sections})
    with pytest.raises(OsdError, match=says) as told:
        check_application(config, [_GPU, _CPU])
    assert "\n" not in str(told.value)


def test_an_application_that_a_node_can_run_is_fine() -> None:
    reserved = {"engine_num_gpus": 1, "engine_num_cpus": 4, "engine_resources": {"fast": 1}, "distiller_num_cpus": 2}
    check_application(_config(outcomes=_REDIS, target={"device": "cuda"}, cluster=reserved), [_GPU, _CPU])


def test_a_distiller_that_is_not_there_needs_no_node() -> None:
    cluster = {"distiller_num_cpus": 30, "distiller_resources": {"none": 1}}
    check_application(_config(outcomes=_REDIS, trainer={"enabled": False}, cluster=cluster), [_CPU])


def test_gpus_that_others_have_reserved_are_refused() -> None:
    cuda = _config(target={"device": "cuda"}, cluster={"engine_num_gpus": 0.5})
    with pytest.raises(
        OsdError, match="needs 0.5 GPU, and of the cluster's 4 only 0.25 are free; stop another"
    ) as told:
        check_free_gpus(cuda, 4.0, 0.25)
    assert "\n" not in str(told.value)
    check_free_gpus(cuda, 4.0, 0.5)
    check_free_gpus(_config(), 0.0, 0.0)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:6379/0", "redis://:pw@10.0.0.1/0", "redis://localhost"])
def test_the_gcs_is_not_taken_for_redis(url: str) -> None:
    with pytest.raises(OsdError, match=r"6379, where Ray's own GCS listens and not Redis; start Ray on") as told:
        refuse_gcs_as_redis(_config(outcomes={"redis_url": url}), "10.0.0.1:6379")
    assert "\n" not in str(told.value) and "pw" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "gcs_address"),
    [
        ("redis://127.0.0.1:6379/0", "10.0.0.1:6380"),
        ("redis://redis:6379/0", "10.0.0.1:6379"),
        ("unix:///run/redis.sock", "10.0.0.1:6379"),
    ],
)
def test_a_redis_beside_the_gcs_is_fine(url: str, gcs_address: str) -> None:
    refuse_gcs_as_redis(_config(outcomes={"redis_url": url}), gcs_address)
