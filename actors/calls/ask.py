"""Calls from one actor to another, which is found by its name in Ray."""

from __future__ import annotations

from typing import Any, Protocol

import ray


class Ask(Protocol):
    """Calls a method of another actor."""

    def __call__(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        """Wait for the answer.

        Args:
            actor: its name in Ray.
            method: name of the method.
            args: the method's arguments.
            timeout_s: when to give up.

        Raises:
            Exception: the actor is restarting or slow; which exception it is depends on Ray.
        """
        ...


def ask_by_ray(actor: str, method: str, *args: Any, timeout_s: float) -> Any:
    """The `Ask` within Ray. Looks the actor up for each call, since a handle is useless once its actor was replaced."""
    return ray.get(getattr(ray.get_actor(actor), method).remote(*args), timeout=timeout_s)
