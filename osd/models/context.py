"""The longest context that a model supports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

UNLIMITED_TOKENS = 2048
"""The context of a model that names no longest length, where none is configured."""


class Context(NamedTuple):
    """How many tokens a query may have, prompt and answer together.

    Example: `str(Context(8192, "the model's own"))` is "context 8192 tokens: the model's own".
    """

    num_tokens: int
    reason: str
    """What limits it."""

    def __str__(self) -> str:
        return f"context {self.num_tokens} tokens: {self.reason}"


def longest_context(config: Any, max_context_tokens: int | None) -> int:
    """Most positions of a row: prompt and answer.

    Args:
        config: transformers' configuration of the model's text part.
        max_context_tokens: the configured limit; None: none.

    Returns:
        The smallest of: the configured limit, the model's own, and the length at which its rotary factors change; or
        `UNLIMITED_TOKENS` if there are none of them.
    """
    known: int | None = getattr(config, "max_position_embeddings", None)
    limits = (known, rotary_boundary(config), max_context_tokens)
    return min((limit for limit in limits if limit), default=UNLIMITED_TOKENS)


def rotary_boundary(config: Any) -> int | None:
    """The length at which a model of LongRoPE (Ding et al. 2024, arXiv 2402.13753) changes its rotary factors, if any.

    A sequence up to that length uses one set of factors, a longer one another set for all of its positions, so crossing
    the length invalidates the whole cache. Moreover, transformers selects one set for a whole batch, so beyond the
    length a query's answer would depend on other queries.
    """
    own = getattr(config, "original_max_position_embeddings", None)
    boundaries = [
        rope.get("original_max_position_embeddings") or own
        for rope in _rope_parameters(config)
        if rope.get("rope_type", rope.get("type")) == "longrope"
    ]
    return min((boundary for boundary in boundaries if boundary), default=None)


def _rope_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """The model's sets of RoPE parameters: one, or one per layer type."""
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer_type = [one for one in rope.values() if isinstance(one, Mapping)]
    yield from by_layer_type or [rope]
