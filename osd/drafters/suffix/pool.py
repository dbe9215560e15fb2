"""Recent answers by domain for the `suffix` drafter, in bounded memory; older answers count less."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from osd.drafters.suffix.index import NOTHING, SuffixIndex, SuffixProposal

_BYTES_PER_TOKEN = 9
"""Two 4-byte numbers, plus a growing array's spare capacity of a sixteenth."""
_BYTES_BESIDE = 1024
"""Memory of a domain besides its index's two arrays: objects, name, dictionary entry."""
_BYTES_PER_DOMAIN = _BYTES_BESIDE + 512
"""Including the arrays' size for a few tokens."""
_HALF_LIFE_TOKENS = 50_000.0
_LEAST_DROPPED = 1 / 16
"""Share of the pool that is dropped at a time, so that dropping costs little per token."""
_TOKENS_AT_ONCE = 32
"""Tokens that are added while a thread that proposes has to wait: under a millisecond."""
_PAUSE_S = 2e-4
"""Between two such pieces, so that the waiting thread gets its turn."""


class AnswerPool:
    """Recent answers by domain.

    If a new answer needs room, the domain with the most tokens drops its oldest answers, so a large domain cannot
    displace a smaller one. One thread may add while another proposes.

    Args:
        max_bytes: limit of the memory used.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._indices: dict[str, SuffixIndex] = {}
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Memory of all indices, in bytes."""
        return sum(_BYTES_BESIDE + index.size_bytes for index in self._indices.values())

    @property
    def num_tokens(self) -> int:
        """Number of tokens stored, plus one per answer."""
        return sum(map(len, self._indices.values()))

    def add(self, domain: str, token_ids: Sequence[int]) -> None:
        """Add an answer; of one that is larger than the pool, only the end is stored."""
        room_tokens = (self._max_bytes - _BYTES_PER_DOMAIN) // _BYTES_PER_TOKEN - 1  # one for the document's boundary
        if room_tokens <= 0 or not token_ids:
            return
        kept = token_ids[-room_tokens:]
        with self._lock:
            index = self._indices.pop(domain, None) or SuffixIndex(half_life_tokens=_HALF_LIFE_TOKENS)
            self._indices[domain] = index  # at the end: among domains of equal size, the least recent one drops first
            self._make_room(len(kept) + 1, keep=domain)
            index.begin_document()
        for start in range(0, len(kept), _TOKENS_AT_ONCE):
            with self._lock:
                index.extend(kept[start : start + _TOKENS_AT_ONCE])
            time.sleep(_PAUSE_S)

    def propose(self, domain: str, context: Sequence[int], max_tokens: int) -> SuffixProposal:
        """A proposal from this domain's answers; see `SuffixIndex.propose`."""
        with self._lock:
            index = self._indices.get(domain)
            return NOTHING if index is None else index.propose(context, max_tokens)

    def _make_room(self, num_tokens: int, keep: str) -> None:
        while (excess := self._num_bytes(num_tokens) - self._max_bytes) > 0:
            domain, largest = max(self._indices.items(), key=lambda item: len(item[1]))
            at_once = max(excess // _BYTES_PER_TOKEN + 1, int(_LEAST_DROPPED * self._max_bytes) // _BYTES_PER_TOKEN)
            largest.drop_oldest(min(at_once, len(largest)))
            if not len(largest) and domain != keep:
                del self._indices[domain]

    def _num_bytes(self, added_tokens: int) -> int:
        """Upper bound of the pool's memory with this many more tokens."""
        return _BYTES_PER_DOMAIN * len(self._indices) + _BYTES_PER_TOKEN * (self.num_tokens + added_tokens)
