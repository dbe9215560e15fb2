"""What Ray Serve is asked to run: resources as they are set, and replicas replaced where something has changed only."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="not installed (osd[serve])", exc_type=ImportError)
from ray.serve._private.build_app import build_app

from actors.cluster.cluster import Node
from actors.serve import versions
from actors.serve.application import bind_application
from osd.config.settings import load_config

NODES = [Node("10.0.0.1", 2, 16), Node("10.0.0.2", 2, 16)]
ALL = {"engine", "distiller", "supervisor", "ingress"}


def deployments(token: str = "", /, **sections: Any) -> dict[str, Any]:
    """Name to deployment, as Serve gets them."""
    outcomes = {"redis_url": "redis://redis:6379/0", **sections.pop("outcomes", {})}
    config = load_config(flags={"outcomes": outcomes, **sections})
    application = bind_application(config, NODES, lambda config, digest: None, token)
    built = build_app(application, name="osd", make_deployment_handle=lambda deployment, app: deployment.name)
    return {one.name: one for one in built.deployments}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Deployments whose replicas Serve replaces."""
    return {name for name in before | after if before[name].version != after[name].version}


def test_the_same_configuration_replaces_nothing() -> None:
    before = deployments("digest", cluster={"runtime_env": {"env_vars": {"A": "1"}}})
    assert before.keys() == ALL
    assert all(one.version for one in before.values()), "without one, Serve makes up another each time"
    assert changed(before, deployments("digest", cluster={"runtime_env": {"env_vars": {"A": "1"}}})) == set()


@pytest.mark.parametrize(
    ("settings", "replaced"),
    [
        ({"engine": {"max_slots": 3}}, ALL),
        ({"target": {"model": "Qwen/Qwen3-0.6B"}}, ALL),
        ({"outcomes": {"redis_url": "redis://other:6379/0"}}, ALL),
        ({"server": {"model_names": ["another"]}}, {"ingress"}),
        ({"server": {"api_keys_sha256": ["ab" * 32]}}, {"ingress"}),
        ({"monitor": {"max_domains": 7}}, {"ingress", "supervisor"}),
        ({"cluster": {"max_engines": 5, "min_engines": 2, "drain_s": 9, "health_timeout_s": 11}}, set()),
        ({"cluster": {"surge": True, "scale_down_delay_s": 1, "target_queries": 2}}, set()),
        ({"cluster": {"num_ingress": 3}}, {"ingress"}),
        ({"cluster": {"report_interval_s": 2}}, ALL),
    ],
)
def test_what_has_changed_is_replaced(settings: dict[str, Any], replaced: set[str]) -> None:
    assert changed(deployments(), deployments(**settings)) == replaced


def test_another_admin_token_replaces_the_ingress_and_other_code_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    before = deployments("one")
    assert changed(before, deployments("another")) == {"ingress"}
    monkeypatch.setattr(versions, "_code", lambda: "after an upgrade")
    assert changed(before, deployments("one")) == ALL


def test_replicas_get_the_settings_that_they_read() -> None:
    settings = {
        "engine": {"max_slots": 3},
        "trainer": {"nice": 7},
        "monitor": {"max_domains": 7},
        "cluster": {"application": "mine", "report_interval_s": 2, "engine_num_cpus": 3, "num_ingress": 4},
    }
    found = {name: one.init_args[0] for name, one in deployments(**settings).items() if name != "ingress"}
    for config in found.values():
        assert (config.engine.max_slots, config.trainer.nice, config.cluster.application) == (3, 7, "mine")
        assert (config.cluster.report_interval_s, config.cluster.engine_num_cpus) == (2, 3)
    assert found["supervisor"].monitor.max_domains == 7


def test_resources_and_runtime_env_reach_serve_as_they_are_set() -> None:
    runtime_env = {"env_vars": {"HF_HOME": "/models"}, "working_dir": "s3://bucket/osd.zip"}
    found = deployments(
        cluster={
            "engine_num_cpus": 2,
            "engine_num_gpus": 0.5,
            "engine_resources": {"a100": 0.25},
            "ingress_num_cpus": 0.5,
            "ingress_resources": {"front": 0.1},
            "distiller_num_cpus": 1.5,
            "distiller_num_gpus": 0.125,
            "distiller_resources": {"learns": 1},
            "supervisor_resources": {"front": 0.1},
            "runtime_env": runtime_env,
        }
    )
    options = {name: one.ray_actor_options for name, one in found.items()}
    assert options == {
        "engine": {"num_cpus": 2, "num_gpus": 0.5, "resources": {"a100": 0.25}, "runtime_env": runtime_env},
        "ingress": {"num_cpus": 0.5, "num_gpus": 0, "resources": {"front": 0.1}, "runtime_env": runtime_env},
        "distiller": {"num_cpus": 1.5, "num_gpus": 0.125, "resources": {"learns": 1}, "runtime_env": runtime_env},
        "supervisor": {"num_cpus": 0, "num_gpus": 0, "resources": {"front": 0.1}, "runtime_env": runtime_env},
    }


def test_numbers_and_delays_reach_serve_as_they_are_set() -> None:
    found = deployments(
        engine={"max_slots": 8, "max_waiting": 20},
        cluster={
            "min_engines": 2,
            "max_engines": 5,
            "target_queries": 3,
            "scale_up_delay_s": 20,
            "scale_down_delay_s": 40,
            "drain_s": 50,
            "surge": True,
            "health_interval_s": 2,
            "health_timeout_s": 9,
            "num_ingress": 3,
        },
    )
    engine = found["engine"]._deployment_config
    scaling = engine.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s, scaling.look_back_period_s) == (20, 40, 20)
    assert (engine.health_check_period_s, engine.health_check_timeout_s) == (2, 9)
    assert (engine.graceful_shutdown_timeout_s, engine.max_surge_percent) == (50, 1)
    assert engine.max_ongoing_requests >= 28
    assert engine.request_router_config.request_router_kwargs == {"num_rows": 8}
    assert found["ingress"].num_replicas == 3
    assert found["ingress"]._deployment_config.max_ongoing_requests >= 5 * 28
