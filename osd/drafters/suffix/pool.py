"""Recent answers by domain, for the `suffix` drafter: bounded in bytes, the older the less they count."""

from __future__ import annotations

from collections.abc import Sequence

from osd.drafters.suffix.index import NOTHING, SuffixIndex, SuffixProposal

_BYTES_PER_TOKEN = 9
"""Two 4-byte numbers, and what a growing array holds in reserve: a sixteenth."""
_BYTES_BESIDE = 1024
"""What a domain takes beside its index's two arrays: objects, its name, its place in the dictionary."""
_BYTES_PER_DOMAIN = _BYTES_BESIDE + 512
"""With the arrays as they are for a handful of tokens."""
_HALF_LIFE_TOKENS = 50_000.0
_LEAST_DROPPED = 1 / 16
"""Share of the pool that is forgotten at once, so that forgetting costs little a token."""


class AnswerPool:
    """Recent answers by domain.

    When a new answer needs room, the domain that has the most tokens forgets its oldest answers: no domain can push out
    another that is smaller.

    Args:
        max_bytes: memory that is never exceeded.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._indices: dict[str, SuffixIndex] = {}

    @property
    def size_bytes(self) -> int:
        """Memory of all indices."""
        return sum(_BYTES_BESIDE + index.size_bytes for index in self._indices.values())

    @property
    def num_tokens(self) -> int:
        """Tokens kept, one more an answer."""
        return sum(map(len, self._indices.values()))

    def add(self, domain: str, token_ids: Sequence[int]) -> None:
        """Remember an answer; one that is longer than the whole pool is cut to its end."""
        room_tokens = (self._max_bytes - _BYTES_PER_DOMAIN) // _BYTES_PER_TOKEN - 1  # one is the document's beginning
        if room_tokens <= 0 or not token_ids:
            return
        kept = token_ids[-room_tokens:]
        index = self._indices.pop(domain, None) or SuffixIndex(half_life_tokens=_HALF_LIFE_TOKENS)
        self._indices[domain] = index  # last in the dictionary: of equally large domains, the stalest forgets first
        self._make_room(len(kept) + 1, keep=domain)
        index.begin_document()
        index.extend(kept)

    def propose(self, domain: str, context: Sequence[int], max_tokens: int) -> SuffixProposal:
        """What followed the end of the context in this domain's answers; see `SuffixIndex.propose`."""
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
        """Most that the pool takes with so many tokens more."""
        return _BYTES_PER_DOMAIN * len(self._indices) + _BYTES_PER_TOKEN * (self.num_tokens + added_tokens)
