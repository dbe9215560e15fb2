"""How an actor is called, whatever lies between: Ray in the driver's process, a pipe to the driver elsewhere."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol


class ActorAwayError(Exception):
    """The actor's process is dead, restarting or out of reach. A later call may be answered."""


class ActorHandle(Protocol):
    """One actor."""

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Call a method.

        The future raises what the method raises, and ActorAwayError when there is no answer.
        """
        ...
