"""Identifies a drafter's weights: the drafter's name and the version."""

from __future__ import annotations

from typing import NamedTuple


class DrafterId(NamedTuple):
    """The weights that proposed a token.

    Example: `DrafterId("feature", 3)`, and of the drafter of one domain `DrafterId("feature.sql", 1)`
    """

    name: str
    """The drafter's name within its engine, under which its versions are stored; see `drafter_name`."""
    version: int
    """Counted from 1 by the weight store; 0 for a drafter without weights."""


def drafter_name(kind: str, domain: str = "") -> str:
    """The name of the base drafter of a kind, or of the drafter that a domain has of its own."""
    return f"{kind}.{domain}" if domain else kind


def kind_of(name: str) -> str:
    """The kind in a drafter's name."""
    return name.partition(".")[0]


def domain_of(name: str) -> str:
    """The domain in a drafter's name; empty for a base drafter, which serves every domain without one of its own."""
    return name.partition(".")[2]
