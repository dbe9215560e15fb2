"""Keeps the number of domains bounded, wherever they are labels: in the history and in metrics."""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "other"


class Domains:
    """The first `most` domains seen keep their names; later ones are called `other`, since clients may send any.

    Args:
        most: how many keep their names.
        known: domains that were seen before, so that they keep their names after a restart.
    """

    def __init__(self, most: int, known: Iterable[str] = ()) -> None:
        self._most = most
        self._known: set[str] = set()
        for name in known:
            self.label(name)

    def label(self, domain: str) -> str:
        """The label of a domain."""
        if domain in self._known or not domain:
            return domain
        if len(self._known) < self._most:
            self._known.add(domain)
            return domain
        return OTHER
