"""Limits on an answer beside its length, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionLimit:
    """Ends an answer that repeats itself: some pattern of tokens `num_repeats` times in a row.

    Example: `RepetitionLimit(min_tokens=1, max_tokens=8, num_repeats=4)` ends "no no no no".
    """

    min_tokens: int
    """Size of the shortest pattern."""
    max_tokens: int
    """Size of the longest pattern."""
    num_repeats: int
    """At least 2; the first occurrence counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinkingLimit:
    """Most tokens of the reasoning that an answer begins with; then the end mark is written for the model."""

    max_tokens: int
    begin_ids: tuple[int, ...]
    """The tokens of the mark that begins reasoning."""
    end_ids: tuple[int, ...]
    """The tokens of the mark that ends it."""
    is_open: bool = False
    """The prompt ends within reasoning."""
