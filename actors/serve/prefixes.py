"""Which engine holds how much of a prompt: token prefixes as chained hashes of blocks.

Each block's hash covers all tokens up to its end, so that two prompts share a prefix of n blocks exactly if their n-th
hashes are equal (but for collisions of 64-bit hashes, which cost a prefill and nothing else).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

BLOCK_TOKENS = 32
K = TypeVar("K")


def block_hashes(ids: Sequence[int], salt: str = "") -> tuple[int, ...]:
    """One hash for each whole block of a prompt, in order; what follows the last whole block is left out.

    Args:
        ids: the tokens.
        salt: prompts with different salts share no prefix (see `Request.cache_salt`).
    """
    data = np.asarray(ids, dtype=np.uint32).tobytes()
    hashes, digest = [], salt.encode()
    for start in range(0, len(ids) // BLOCK_TOKENS * BLOCK_TOKENS * 4, BLOCK_TOKENS * 4):
        digest = hashlib.blake2b(digest + data[start : start + BLOCK_TOKENS * 4], digest_size=8).digest()
        hashes.append(int.from_bytes(digest))
    return tuple(hashes)


def num_shared(prefix: Sequence[int], held: Collection[int]) -> int:
    """How many leading blocks of a prompt are among those held."""
    return next((depth for depth, block in enumerate(prefix) if block not in held), len(prefix))


class HeldPrefixes:
    """The newest token sequences of one engine, as block hashes.

    Args:
        num_sequences: how many are kept; the number of the engine's rows, each of which holds one.
    """

    def __init__(self, num_sequences: int) -> None:
        self._num_sequences = num_sequences
        self._sequences: OrderedDict[int, tuple[int, ...]] = OrderedDict()
        """By their last hash, least recently used first."""

    def add(self, hashes: tuple[int, ...]) -> None:
        """Record a sequence; one that it continues is replaced."""
        if not hashes:
            return
        for block in hashes:
            self._sequences.pop(block, None)
        self._sequences[hashes[-1]] = hashes
        if len(self._sequences) > self._num_sequences:
            self._sequences.popitem(last=False)

    def blocks(self) -> frozenset[int]:
        """The hashes of all sequences."""
        return frozenset().union(*self._sequences.values())


@dataclass(frozen=True, slots=True)
class Candidate(Generic[K]):
    """An engine that may be given a query."""

    key: K
    num_queries: int
    """Queries in it, decoding or waiting."""
    num_shared: int
    """Leading blocks of the query's prompt that it holds."""


def in_order(candidates: Sequence[Candidate[K]], num_rows: int) -> list[K]:
    """Engines in the order in which a query should try them.

    First the one that holds most of the prompt, unless its rows are all taken while another is less loaded: waiting for
    a row takes longer than processing the prompt again. Then the least loaded; of equals, in the given order.

    Args:
        candidates: the engines.
        num_rows: queries that an engine decodes at once.
    """
    by_load = sorted(candidates, key=lambda one: one.num_queries)
    holder = max(by_load, key=lambda one: one.num_shared, default=None)
    if holder is None or not holder.num_shared:
        return [one.key for one in by_load]
    if holder.num_queries >= num_rows and holder.num_queries > by_load[0].num_queries:
        return [one.key for one in by_load]
    return [holder.key, *(one.key for one in by_load if one is not holder)]
