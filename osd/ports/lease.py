"""The Protocol of the right to train: at most one trainer of a stream has it."""

from __future__ import annotations

from typing import Protocol


class TrainingLease(Protocol):
    """Held by the trainer that may read the stream, train, save and publish."""

    @property
    def fence(self) -> int:
        """Grows each time the lease goes to another holder; kept with what is published under it."""
        ...

    def is_held(self) -> bool:
        """Whether it is certainly held now."""
        ...


class Unshared:
    """Implements `TrainingLease` where there is no other trainer."""

    fence = 0

    def is_held(self) -> bool:
        """Always."""
        return True
