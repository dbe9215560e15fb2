"""`osd serve --ray-address`: deploys the application to a Ray cluster, and leaves it there."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

from osd.config.paths import admin_token_path
from osd.config.server import ServerConfig
from osd.config.settings import Config, ConfigError
from osd.records.errors import OsdError
from serving.preflight import exposure_warning
from serving.ray_serve import application
from serving.serve import Serving, admin_token

_log = logging.getLogger(__name__)


def deploy_to_cluster(config: Config, on_progress: Callable[[str, float], None]) -> Serving:
    """Deploy, or update what was deployed before, and wait until it serves; what has not changed is left alone.

    Args:
        config: the whole configuration; `cluster.address` is the cluster.
        on_progress: called with (stage, share done).

    Raises:
        OsdError: one line that says what is wrong and what to do.
    """
    try:
        from actors.serve.deploy import deploy, joined  # an optional extra
    except ImportError as error:
        raise OsdError(f"Ray Serve is not installed ({error}); pip install 'osd[serve]'") from None
    if config.server.receive_timeout_s != ServerConfig().receive_timeout_s:
        raise ConfigError(
            "server.receive_timeout_s has no effect in a cluster (Serve's proxy reads requests); unset it"
        )
    if not config.server.port:
        raise ConfigError("server.port is 0, and a cluster's proxies need one that clients know; set it")
    token, digest = _kept_token(config)
    config = config.model_copy(update={"server": config.server.model_copy(update={"admin_token_sha256": digest})})
    on_progress("joining the Ray cluster", 0.1)
    with joined(config):
        deploy(application(config), config, lambda stage: on_progress(stage, 0.5))
    if warning := exposure_warning(config, config.server.host):
        _log.warning(warning)
    scheme = "https" if config.server.ssl_certfile else "http"
    return Serving(
        url=f"{scheme}://{config.server.host}:{config.server.port}",
        model=config.server.model_names[0] if config.server.model_names else config.target.model,
        drafter=config.drafter.kind,
        computes=f"Ray Serve application {config.cluster.application!r} in the cluster at {config.cluster.address}",
        admin_token=token,
        stop="it goes on in the cluster; `serve shutdown` there ends it",
    )


def _kept_token(config: Config) -> tuple[str | None, str]:
    """As `admin_token`; a token that was made is kept in the state folder, so that the next update has the same one.

    With another one each time, every update would replace the HTTP replicas.
    """
    token, digest = admin_token(config)
    if token is None:
        return None, digest
    path = admin_token_path(config.state_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        token = path.read_text().strip() or token
        path.write_text(token)
    except OSError as error:
        raise OsdError(f"the admin token cannot be kept in {path}: {error.strerror}; set OSD_ADMIN_TOKEN") from None
    return token, hashlib.sha256(token.encode()).hexdigest()
