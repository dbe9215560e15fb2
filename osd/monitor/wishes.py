"""The operator's lasting choices, which are stored and so survive every restart."""

from __future__ import annotations

from collections.abc import Set
from typing import Self

import msgspec

from osd.records.errors import OsdError

_MOST = 200
"""Domains and engines that wishes can name."""
_LONGEST = 16


class BadWishError(OsdError):
    """Something that cannot be asked for; the message says why."""


class Wishes(msgspec.Struct, frozen=True, kw_only=True):
    """All wishes; each change makes a new object."""

    lengths: dict[str, int] = {}
    """Domain to the speculation length of its queries; 0: plain decoding. Others are chosen by goodput."""
    frozen: frozenset[str] = frozenset()
    """Domains that the trainer does not learn from."""
    draining: frozenset[str] = frozenset()
    """Ids of engines that take no new queries."""
    paused: bool = False
    """No training until somebody resumes it."""

    def with_length(self, domain: str, length: int | None) -> Self:
        """Fix a domain's speculation length, or let goodput choose it again (None).

        Raises:
            BadWishError: the length or the domain is unfit.
        """
        if length is not None and not 0 <= length <= _LONGEST:
            raise BadWishError(f"length must be between 0 (plain decoding) and {_LONGEST}, or null (chosen by goodput)")
        rest = {name: value for name, value in self.lengths.items() if name != domain}
        return self._checked(lengths=rest if length is None else {**rest, _named(domain, "domain"): length})

    def with_frozen(self, domain: str, frozen: bool) -> Self:
        """Learn from a domain no more, or again."""
        return self._checked(frozen=_toggled(self.frozen, _named(domain, "domain"), frozen))

    def with_draining(self, engine: str, draining: bool) -> Self:
        """Give an engine no new queries, or again."""
        return self._checked(draining=_toggled(self.draining, _named(engine, "engine"), draining))

    def without_engines(self, gone: Set[str]) -> Self:
        """Name engines no more that will not come back."""
        return self._checked(draining=self.draining - gone)

    def with_paused(self, paused: bool) -> Self:
        """Train no more, or again."""
        return self._checked(paused=paused)

    def _checked(self, **changed: object) -> Self:
        wishes = msgspec.structs.replace(self, **changed)
        if max(len(wishes.lengths), len(wishes.frozen), len(wishes.draining)) > _MOST:
            raise BadWishError(f"more than {_MOST} domains or engines are named; take back what is no longer needed")
        return wishes


def _named(name: str, what: str) -> str:
    if not name or len(name) > 200:
        raise BadWishError(f"{what} must have 1 to 200 characters")
    return name


def _toggled(names: frozenset[str], name: str, present: bool) -> frozenset[str]:
    return names | {name} if present else names - {name}


class TrainerWishes(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor tells the distiller of them."""

    session: str
    """Of the supervisor's process: numbers begin anew with another one."""
    frozen: frozenset[str]
    num_trainings: int
    """How often an operator has asked to train now."""
    num_publishes: int
    """How often to publish the candidate."""
