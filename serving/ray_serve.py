"""The HTTP app as a Ray Serve deployment (optional: `pip install 'osd[serve]'`; Ray 2.52 or newer).

Example, in the module that `serve run` or a RayService names:

    application = ray_serve.application(config, connect, admin_token_sha256=digest)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from osd.config.settings import Config
from serving.app import create_app
from serving.codec import Codec
from serving.engine_client import EngineClient

Connect = Callable[[Config], tuple[EngineClient, Codec]]


def application(
    config: Config, connect: Connect, *, admin_token_sha256: str = "", deployment_options: dict[str, Any] | None = None
) -> Any:
    """A Ray Serve application with the routes of `create_app`.

    Args:
        config: passed to `create_app`.
        connect: called once in every replica; connects to the engine and loads the tokenizer.
        admin_token_sha256: as for `create_app`. A session is known to one replica: with several, use the bearer token.
        deployment_options: passed to `serve.deployment`: `num_replicas`, `ray_actor_options`, ...

    Returns:
        The application, for `serve.run`.
    """
    from ray import serve  # an optional extra, and slow to import

    def build_app() -> FastAPI:
        client, codec = connect(config)
        return create_app(config, client, codec, admin_token_sha256=admin_token_sha256)

    deployment = serve.deployment(serve.ingress(build_app)(), name="osd", **(deployment_options or {}))
    return deployment.bind()
