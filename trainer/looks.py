"""What the gate decides by: held-out records, the newest of each domain first, and the newest records of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from osd.records.outcome import Outcome
from trainer.batches import Batch
from trainer.examples import ExampleKey
from trainer.gate import MOST_LOOKS, Look

_FIRST_LOOK = 16
"""Records; each further look doubles their number."""
_LEAST_OF_A_DOMAIN = 3
"""As many as `trainer.gate` needs to tell whether a domain loses."""


class Evidence(NamedTuple):
    """Records to decide by."""

    looks: Sequence[Look]
    """All held-out records; see `split_into_looks`."""
    newest: Sequence[Batch] = ()
    """The newest held-out records, all in the first look."""
    unseen: Sequence[Batch] = ()
    """The newest records, held out or not, on which the version that serves was not trained: those that came since it
    was published."""

    def keys(self) -> Iterator[ExampleKey]:
        """Of all examples."""
        looked_at = (batch for look in self.looks for own in look.values() for batch in own)
        return (key for batch in chain(looked_at, self.unseen) for key in batch.keys)


def split_into_looks(outcomes: Sequence[Outcome], num_newest: int) -> list[list[Outcome]]:
    """Each look's records, without those of the looks before; together all of them.

    Args:
        outcomes: held-out records, oldest first; at least one.
        num_newest: as many of the newest records, of whatever domain, are in the first look.
    """
    ranks = Counter[str]()
    ranked = []
    for number, outcome in enumerate(reversed(outcomes)):
        ranked.append((ranks[outcome.domain] if number >= num_newest else -1, number))
        ranks[outcome.domain] += 1
    ordered = [outcomes[-1 - number] for _, number in sorted(ranked)]
    size = max(_FIRST_LOOK, num_newest + _LEAST_OF_A_DOMAIN * len(ranks))
    looks: list[list[Outcome]] = []
    start = 0
    while start < len(ordered):
        end = len(ordered) if len(looks) == MOST_LOOKS - 1 else min(max(size, 2 * start), len(ordered))
        looks.append(ordered[start:end])
        start = end
    return looks
