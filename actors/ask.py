"""How one actor asks another, which it knows by its name in Ray."""

from __future__ import annotations

from typing import Any, Protocol

import ray


class Ask(Protocol):
    """Calls a method of another actor."""

    def __call__(self, actor: str, method: str, *args: Any, timeout_s: float) -> Any:
        """Wait for the answer.

        Args:
            actor: its name in Ray.
            method: of it.
            args: of the method.
            timeout_s: when to give up.

        Raises:
            Exception: of many kinds, while the actor is restarting or slow.
        """
        ...


def ask_by_ray(actor: str, method: str, *args: Any, timeout_s: float) -> Any:
    """An `Ask` within Ray; handles are looked up each time, since none outlives a restart of this actor."""
    return ray.get(getattr(ray.get_actor(actor), method).remote(*args), timeout=timeout_s)
