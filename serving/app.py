"""Creates the HTTP application from its parts; there is no global state."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from fastapi.middleware import Middleware

from osd.config.settings import Config
from serving.admin.sign_in import AdminSignIn, Sessions
from serving.codec import Codec
from serving.engine_client import EngineClient
from serving.guards.api_keys import ApiKeys
from serving.guards.cors import ApiCors
from serving.head import HeadAsGet
from serving.observing.metrics import Metrics
from serving.observing.observe import Observe
from serving.observing.tracing import Tracing, open_tracing
from serving.openapi import Api
from serving.responses.background import BackgroundResponses
from serving.responses.store import ResponseStore
from serving.route_path import UnderRootPath
from serving.routes import chat, completions, health, messages, models, openapi, past_responses, responses, tokenize
from serving.routes.admin import alerts, engines, history, levers, live, page, playground, wishes
from serving.services import Services
from serving.wire.errors import install_error_handlers


def create_app(
    config: Config,
    client: EngineClient,
    codec: Codec,
    *,
    admin_token_sha256: str,
    tracing: Tracing | None = None,
    sessions: Sessions | None = None,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
) -> FastAPI:
    """The OpenAI routes, health, metrics and the admin page over one engine.

    Args:
        config: only its `server` section is read.
        client: the engine.
        codec: its target's tokenizer.
        admin_token_sha256: SHA-256 (hex) of the admin token; empty disables the admin API.
        tracing: makes traces; None: as `server.otlp_endpoint` says.
        sessions: keeps the admin page's sessions; None: this app by itself.
        lifespan: entered before the first request, and left when the server stops.

    Example: `uvicorn.run(create_app(config, client, codec, admin_token_sha256=digest), host="127.0.0.1", port=8000)`
    """
    kept = ResponseStore(config.server.stored_responses_bytes)
    services = Services(
        config=config,
        client=client,
        codec=codec,
        metrics=Metrics(config, config.server.model_names[0] if config.server.model_names else codec.model_id),
        tracing=tracing or open_tracing(config.server),
        responses=kept,
        background=BackgroundResponses(kept, config.server.background_responses),
        api_keys=ApiKeys(config.server.api_keys_sha256, domains=config.server.api_key_domains),
        admin=AdminSignIn(admin_token_sha256, sessions),
    )
    app = Api(
        config,
        title="osd",
        docs_url=None,  # FastAPI's documentation pages load scripts from other hosts
        openapi_url=None,  # served by serving.routes.openapi, to whom the configuration allows
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=[
            Middleware(UnderRootPath, root_path=config.server.root_path),
            Middleware(ApiCors, origins=config.server.allowed_origins),
            Middleware(HeadAsGet),
            Middleware(Observe, metrics=services.metrics.http, tracing=services.tracing),
        ],
    )
    app.state.services = services
    app.state.created_s = int(time.time())
    install_error_handlers(app)
    app.state.snapshots = live.Snapshots(services)
    for part in (chat, completions, messages, models, responses, past_responses, tokenize, health, openapi):
        app.include_router(part.router)
    for part in (page, levers, history, engines, alerts, wishes, live, playground):
        app.include_router(part.router)
    app.include_router(health.metrics_router)
    app.include_router(levers.public_router)
    return app
