"""The service as a Ray Serve application (optional: `pip install 'osd[serve]'`).

`serve run`, `serve deploy` and a KubeRay RayService name it by `serving.ray_serve:build`, with osd's settings as
arguments:

    applications:
      - name: osd
        import_path: serving.ray_serve:build
        args:
          target: { model: smollm2 }
          outcomes: { redis_url: "redis://redis:6379/0" }
          cluster: { max_engines: 3 }

Its deployments are `ingress` (HTTP), `engine`, `distiller` and `supervisor`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from osd.config.settings import Config, ConfigError, load_config
from osd.io.guards.store_health import refuse_private_store
from osd.loading.resolve import configured_target
from osd.records.errors import EngineUnavailableError
from osd.text.codec import TextCodec
from serving.app import create_app
from serving.codec import Codec
from serving.engine_client import EngineClient

_log = logging.getLogger(__name__)
_ASK_AGAIN_S = 2.0
_OF_SERVE = {
    ("cluster", "address"): "it is the cluster that Serve runs in",
    ("cluster", "namespace"): "it is Serve's",
    ("cluster", "object_store_bytes"): "the nodes' own `ray start` holds it",
    ("server", "host"): "Serve's http_options hold it",
    ("server", "port"): "Serve's http_options hold it",
    ("server", "receive_timeout_s"): "Serve's proxy reads the requests",
    ("server", "ssl_certfile"): "Serve's http_options hold it",
    ("server", "ssl_keyfile"): "Serve's http_options hold it",
}
"""Settings that cannot be honoured here, each with the reason."""


def build(args: Mapping[str, Any]) -> Any:
    """The application that Serve runs.

    Args:
        args: osd's settings by section, as in its TOML file; environment variables of the node that builds it (`OSD_…`)
            are read for what is not given.

    Returns:
        A bound Serve application.

    Raises:
        ConfigError: a setting is unknown or unfit, or belongs to Serve.
        OsdError: the cluster cannot run what is configured.
    """
    return application(settings_of(args))


def application(config: Config) -> Any:
    """The application of a configuration, which the cluster that this process has joined is checked for.

    Raises:
        OsdError: the cluster cannot run what is configured.
    """
    from actors.cluster.cluster import (  # slow
        address_of_cluster,
        check_application,
        nodes_of_cluster,
        refuse_gcs_as_redis,
    )
    from actors.serve.application import bind_application
    from actors.supervisor.stream_keeper import claim_if_there

    nodes = nodes_of_cluster()
    check_application(config, nodes)
    refuse_private_store(config)
    gcs_address = address_of_cluster()
    refuse_gcs_as_redis(config, gcs_address)
    if config.outcomes.enabled:
        claim_if_there(config, config.outcomes.redis_url, gcs_address)
    return bind_application(config, nodes, _app_of_replica, admin_digest(config))


def settings_of(args: Mapping[str, Any]) -> Config:
    """The application's arguments as osd's configuration; for what is raised, see `build`."""
    for (section, field), why in _OF_SERVE.items():
        if field in args.get(section, {}):
            raise ConfigError(f"setting '{section}.{field}' has no effect under Ray Serve ({why}); remove it")
    return load_config(flags=args)


def admin_digest(config: Config) -> str:
    """SHA-256 (hex) of the admin token, the same for all replicas; empty: the admin page is off."""
    token = os.environ.get("OSD_ADMIN_TOKEN", "")
    digest = config.server.admin_token_sha256 or (hashlib.sha256(token.encode()).hexdigest() if token else "")
    if not digest:
        _log.warning("the admin page is off: set server.admin_token_sha256 or OSD_ADMIN_TOKEN")
    return digest


def _app_of_replica(config: Config, admin_token_sha256: str) -> FastAPI:
    """In a replica of the ingress: the HTTP application over handles of the other deployments."""
    from actors.calls.by_serve import INGRESS
    from actors.cluster.replica_logs import join_cluster_logs
    from actors.serve.client import client_of_replica

    join_cluster_logs(INGRESS, config)
    resolved = configured_target(config)
    codec = TextCodec.configured(resolved.folder, resolved.target_id, config.target)
    client = client_of_replica(config)
    # Replicas share the sessions of the admin page: a browser's requests go to any of them.
    return create_app(
        of_replica(config),
        client,
        codec,
        admin_token_sha256=admin_token_sha256,
        sessions=client,
        lifespan=lambda app: _learning_context(client, codec),
    )


@asynccontextmanager
async def _learning_context(client: EngineClient, codec: Codec) -> AsyncIterator[None]:
    learning = asyncio.create_task(learn_context(client, codec))
    try:
        yield
    finally:
        learning.cancel()


async def learn_context(client: EngineClient, codec: Codec, retry_s: float = _ASK_AGAIN_S) -> None:
    """Set the codec's context to that of the engines, which depends on their memory, once one answers.

    Until then it is the model's own; an engine refuses prompts that are too long for it by itself.
    """
    while True:
        try:
            status = await client.status()
        except EngineUnavailableError:
            status = None
        if status is not None and status.engine is not None:
            codec.context_tokens = status.engine.context_tokens
            return
        await asyncio.sleep(retry_s)


def of_replica(config: Config) -> Config:
    """The configuration of one replica of the ingress: one of several stores no responses, as others lack them."""
    if config.cluster.num_ingress == 1:
        return config
    return config.model_copy(update={"server": config.server.model_copy(update={"stored_responses_bytes": 0})})
