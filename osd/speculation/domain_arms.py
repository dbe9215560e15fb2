"""The drafters that domains have of their own, as many as the memory is meant for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from osd.records.drafter_id import domain_of
from osd.speculation.arm import Arm


class DomainArms:
    """Arms by domain; the one that was not used for longest leaves first.

    Args:
        most: number of arms kept; 0: every domain is served by the base drafter.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.on_missing: Callable[[str], None] = lambda domain: None
        """Called when a query comes whose domain has no arm here; it must be quick."""
        self._arms: dict[str, Arm] = {}
        """By domain, the least recently used first."""

    def __iter__(self) -> Iterator[Arm]:
        return iter(self._arms.values())

    def expect(self, domain: str) -> None:
        """Note a query of this domain, so that its drafter is loaded if it has one that is not in memory."""
        if self.most and domain not in self._arms:
            self.on_missing(domain)

    def use(self, domain: str) -> Arm | None:
        """The arm of a domain, which counts as used now; None if it has none here."""
        arm = self._arms.pop(domain, None)
        if arm is not None:
            self._arms[domain] = arm
        return arm

    def add(self, arm: Arm) -> list[Arm]:
        """Add a domain's arm.

        Returns:
            The arms that left to make room.
        """
        self._arms[domain_of(arm.name)] = arm
        left = []
        while len(self._arms) > self.most:
            left.append(self._arms.pop(next(iter(self._arms))))
        return left

    def remove(self, domain: str) -> Arm | None:
        """Remove a domain's arm, if it has one here; the base drafter serves it from then on."""
        return self._arms.pop(domain, None)
