"""Identifies the node that this process runs on."""

from __future__ import annotations

import socket

import ray


def node_id() -> str:
    """Ray's id of the node; without Ray, the machine's name."""
    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else socket.gethostname()
