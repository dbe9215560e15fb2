"""How actors are called: through Ray in the driver's process, through a pipe to the driver in the server's."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol


class ActorAwayError(Exception):
    """The actor's process is dead, restarting or unreachable. A later call may succeed."""


class ActorHandle(Protocol):
    """One actor."""

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Call a method.

        The future raises what the method raises, and ActorAwayError when there is no answer.
        """
        ...
