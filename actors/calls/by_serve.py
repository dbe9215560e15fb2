"""How parts of the Ray Serve application ask one another: by the names of their deployments."""

from __future__ import annotations

from functools import cache
from typing import Any

from ray import serve

from actors.calls.names import ActorNames

ENGINE, DISTILLER, SUPERVISOR, INGRESS = "engine", "distiller", "supervisor", "ingress"
"""The application's deployments."""
NAMES = ActorNames(ENGINE, DISTILLER, SUPERVISOR)


def ask_by_serve(actor: str, method: str, *args: Any, timeout_s: float) -> Any:
    """An `actors.calls.ask.Ask` within the application of the calling replica; `actor` is a deployment."""
    return getattr(deployment_handle(actor), method).remote(*args).result(timeout_s=timeout_s)


@cache
def deployment_handle(deployment: str) -> Any:
    """A handle of a deployment of the calling replica's application; it outlives the replicas that it reaches."""
    return serve.get_deployment_handle(deployment, serve.get_replica_context().app_name)
