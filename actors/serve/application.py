"""The deployments of the Ray Serve application, with all that Serve is asked to do for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from actors.calls.by_serve import DISTILLER, ENGINE, INGRESS, SUPERVISOR
from actors.cluster.cluster import Node, trains
from actors.serve.distiller import DistillerReplica
from actors.serve.engine import EngineReplica
from actors.serve.placement import (
    distiller_resources,
    engine_resources,
    ingress_resources,
    supervisor_resources,
)
from actors.serve.supervisor import SupervisorReplica
from actors.serve.versions import config_of_engines, config_of_replicas, config_of_supervisor, versioned
from osd.config.settings import Config

_NUM_EXTRA_REQUESTS = 64
"""Requests that a replica takes beyond those that it holds: refusals, health checks, questions for its status."""
_PREFIXES_PERIOD_S = 1.0
_LEAST_LOOK_BACK_S = 11.0
"""Load is averaged over at least this time; Serve asks for more than the 10 s between its processes' reports."""
_NUM_STARTS = 3
"""How often Serve tries to start a replica of an update before it calls the update failed."""


def bind_application(
    config: Config, nodes: Sequence[Node], make_app: Callable[[Config, str], Any], admin_token_sha256: str
) -> Any:
    """Declare the application; Serve runs it. Deployed again, it replaces the replicas of what has changed.

    Args:
        config: the whole configuration.
        nodes: of the cluster.
        make_app: makes the HTTP application in a replica of the ingress, from the configuration and the next argument.
        admin_token_sha256: SHA-256 (hex) of the admin token; empty: the admin page is off.

    Returns:
        A bound Serve application.
    """
    cluster, redis_url = config.cluster, config.outcomes.redis_url
    single = {"num_replicas": 1, "max_ongoing_requests": 1000, "max_constructor_retry_count": _NUM_STARTS}
    of_engines, of_supervisor = config_of_engines(config), config_of_supervisor(config)
    of_ingress = config_of_replicas(config)

    def build_app() -> Any:
        return make_app(of_ingress, admin_token_sha256)

    supervisor = serve.deployment(
        SupervisorReplica, name=SUPERVISOR, ray_actor_options=supervisor_resources(cluster), **single
    )
    distiller = serve.deployment(
        DistillerReplica, name=DISTILLER, ray_actor_options=distiller_resources(cluster, nodes), **single
    )
    ingress = serve.deployment(
        serve.ingress(build_app)(),
        name=INGRESS,
        ray_actor_options=ingress_resources(cluster),
        num_replicas=cluster.num_ingress,
        # Engines answer 429 when they are full; Serve must not hold queries back before that.
        max_ongoing_requests=cluster.max_engines * _most_queries(config) + _NUM_EXTRA_REQUESTS,
        graceful_shutdown_timeout_s=cluster.drain_s,
        max_constructor_retry_count=_NUM_STARTS,
    )
    parts = [
        versioned(_engines(config), of_engines).bind(of_engines, redis_url),
        versioned(supervisor, of_supervisor).bind(of_supervisor),
        *([versioned(distiller, of_engines).bind(of_engines, redis_url)] if trains(config) else []),
    ]
    return versioned(ingress, of_ingress, admin_token_sha256).bind(*parts)


def _engines(config: Config) -> Any:
    cluster = config.cluster
    return serve.deployment(
        EngineReplica,
        name=ENGINE,
        ray_actor_options=engine_resources(cluster),
        max_ongoing_requests=_most_queries(config) + _NUM_EXTRA_REQUESTS,
        autoscaling_config=AutoscalingConfig(
            min_replicas=cluster.min_engines,
            max_replicas=cluster.max_engines,
            target_ongoing_requests=cluster.target_queries or 0.75 * config.engine.max_slots,
            look_back_period_s=max(cluster.scale_up_delay_s, _LEAST_LOOK_BACK_S),
            upscale_delay_s=cluster.scale_up_delay_s,
            downscale_delay_s=cluster.scale_down_delay_s,
        ),
        health_check_period_s=cluster.health_interval_s,
        health_check_timeout_s=cluster.health_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=cluster.drain_s,
        rolling_update_percentage=0.01,  # one by one
        max_surge_percent=1 if cluster.surge else 0,  # of them, rounded up to one
        max_constructor_retry_count=_NUM_STARTS,
        request_router_config=RequestRouterConfig(
            request_router_class="actors.serve.router.PrefixRouter",
            request_router_kwargs={"num_rows": config.engine.max_slots},
            request_routing_stats_period_s=_PREFIXES_PERIOD_S,
        ),
    )


def _most_queries(config: Config) -> int:
    """Queries that one engine holds."""
    return config.engine.max_slots + config.engine.max_waiting
