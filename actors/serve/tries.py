"""Which engines a query should be kept from, and which one it was sent to: between its client and Serve's router."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Tries:
    """A keyword argument of a call to an engine. The router of the calling process reads it, and writes `last` to it.

    The engine gets a copy, and does not read it.
    """

    avoid: list[str] = field(default_factory=list)
    """Engines that were full, or were asked already."""
    silent: Collection[str] = ()
    """Engines that died or hung lately: Serve may not have noticed yet."""
    last: str = ""
    """The engine that the call was sent to; empty until the router has chosen one."""

    def allowed(self, engines: Sequence[T], id_of: Callable[[T], str]) -> Sequence[T]:
        """The engines to choose from; those to avoid come before silent ones, and these before none at all.

        Args:
            engines: all that run.
            id_of: the id of one.
        """
        for refused in ({*self.avoid, *self.silent}, self.silent):
            if left := [one for one in engines if id_of(one) not in refused]:
                return left
        return engines
