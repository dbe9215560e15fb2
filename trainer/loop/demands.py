"""What an operator demands of a running trainer."""

from __future__ import annotations

import threading


class Demands:
    """Set by one thread, read by the trainer's."""

    def __init__(self) -> None:
        self.frozen: frozenset[str] = frozenset()
        """Domains that are not learnt from."""
        self._train, self._publish = threading.Event(), threading.Event()

    def train_now(self) -> None:
        """Train until the gate's next decision, however busy the engine is."""
        self._train.set()

    def publish(self) -> None:
        """Publish the present weights, whatever the gate says."""
        self._publish.set()

    @property
    def trains_now(self) -> bool:
        """Whether to train however busy the engine is."""
        return self._train.is_set() or self._publish.is_set()

    @property
    def publishes(self) -> bool:
        """Whether to publish whatever the gate says."""
        return self._publish.is_set()

    def met(self) -> None:
        """The gate has decided."""
        self._train.clear()
        self._publish.clear()
