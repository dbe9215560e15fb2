"""How long a model's rows may get."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def longest_context(config: Any, max_context_tokens: int) -> int:
    """Most positions of a row, prompt and answer.

    Args:
        config: of the model's text part, as transformers has it.
        max_context_tokens: what was asked for.

    Returns:
        That, or less: what the model knows, or as far as its rotary factors stay the same.
    """
    known: int | None = getattr(config, "max_position_embeddings", None)
    limits = (known, rotary_boundary(config), max_context_tokens)
    return min(limit for limit in limits if limit)


def rotary_boundary(config: Any) -> int | None:
    """The length at which a model of LongRoPE (Ding et al. 2024, arXiv 2402.13753) changes its rotary factors, if any.

    A sequence up to that length is rotated with one set of factors, a longer one with another, from its first position
    on: at the boundary all that is cached becomes wrong. And transformers chooses one set for a whole batch, so beyond
    it a query's answer would depend on the others'.
    """
    own = getattr(config, "original_max_position_embeddings", None)
    boundaries = [
        rope.get("original_max_position_embeddings") or own
        for rope in _rope_parameters(config)
        if rope.get("rope_type", rope.get("type")) == "longrope"
    ]
    return min((boundary for boundary in boundaries if boundary), default=None)


def _rope_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """All of a model's: one set, or one by layer type."""
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [one for one in rope.values() if isinstance(one, Mapping)]
    yield from by_layer_type or [rope]
