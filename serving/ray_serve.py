"""The service as a Ray Serve application (optional: `pip install 'osd[serve]'`; Ray 2.52 or newer).

`serve run`, `serve deploy` and a KubeRay RayService name it by `serving.ray_serve:build`, with osd's settings as
arguments:

    applications:
      - name: osd
        import_path: serving.ray_serve:build
        args:
          target: { model: smollm2 }
          outcomes: { redis_url: "redis://redis:6379/0" }

There is one replica. It starts the engine, the distiller and the supervisor in the cluster that Serve runs in, and
stops them when it is stopped.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from osd.config.settings import Config, ConfigError, load_config
from osd.records.errors import OsdError
from osd.text.codec import TextCodec
from serving.app import create_app

_log = logging.getLogger(__name__)
_OF_SERVE = {
    ("cluster", "address"): "it is the cluster that Serve runs in",
    ("server", "host"): "Serve's http_options hold it",
    ("server", "port"): "Serve's http_options hold it",
    ("server", "receive_timeout_s"): "Serve's proxy reads the requests",
    ("server", "ssl_certfile"): "Serve's http_options hold it",
    ("server", "ssl_keyfile"): "Serve's http_options hold it",
}
"""Settings that cannot be honoured here, each with the reason."""
_NUM_EXTRA_REQUESTS = 64
"""Requests a replica takes beyond those that the engine holds: refusals, health checks and pages."""


def build(args: Mapping[str, Any]) -> Any:
    """The application that Serve runs.

    Args:
        args: osd's settings by section, as in its TOML file; environment variables of the replica's node (`OSD_…`) are
            read for what is not given.

    Returns:
        A bound Serve application. Its deployment is called `osd`; Serve's config may set its `ray_actor_options`.

    Raises:
        ConfigError: a setting is unknown or unfit, or belongs to Serve.
    """
    from ray import serve  # an optional extra, and slow to import

    config = settings_of(args)
    limit = config.engine.max_slots + config.engine.max_waiting + _NUM_EXTRA_REQUESTS

    def build_app() -> FastAPI:
        return _start(config)

    # The engine answers 429 when it is full; Serve must not hold queries back before that.
    deployment = serve.deployment(
        serve.ingress(build_app)(), name="osd", num_replicas=1, max_ongoing_requests=limit, health_check_timeout_s=60
    )
    return deployment.bind()


def settings_of(args: Mapping[str, Any]) -> Config:
    """The application's arguments as osd's configuration; for what is raised, see `build`."""
    for (section, field), why in _OF_SERVE.items():
        if field in args.get(section, {}):
            raise ConfigError(f"setting '{section}.{field}' has no effect under Ray Serve ({why}); remove it")
    return load_config(flags=args)


def _start(config: Config) -> FastAPI:
    """In a replica: start the actors, and stop them when the app is shut down."""
    import ray
    from ray import serve

    from actors.topology import start

    num_replicas = serve.get_replica_context().world_size
    if num_replicas > 1:
        raise OsdError(
            f"deployment 'osd' has {num_replicas} replicas, and each would start an engine and a distiller of its own; "
            "set num_replicas to 1"
        )
    address = ray.get_runtime_context().gcs_address
    joined = config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": address})})
    topology = start(joined, lambda stage, share: _log.info("%s", stage), on_news=lambda line: _log.info("%s", line))
    try:
        resolved = topology.resolved
        codec = TextCodec.open(
            resolved.folder,
            resolved.target_id,
            config.target.max_context_tokens,
            special_tokens_in_messages=config.target.special_tokens_in_messages,
        )
        token = os.environ.get("OSD_ADMIN_TOKEN", "")
        digest = config.server.admin_token_sha256 or (hashlib.sha256(token.encode()).hexdigest() if token else "")
        if not digest:
            _log.warning("the admin page is off: set server.admin_token_sha256 or OSD_ADMIN_TOKEN")

        @asynccontextmanager
        async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
            yield
            topology.close()

        return create_app(joined, topology.client, codec, admin_token_sha256=digest, lifespan=lifespan)
    except BaseException:
        topology.close()
        raise
