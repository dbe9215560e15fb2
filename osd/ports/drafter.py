"""The Protocols of a drafter, as the engine uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from osd.records.drafter_id import DrafterId

if TYPE_CHECKING:
    import torch

    from osd.records.proposal import DraftBatch, Proposal


SwapIn = Callable[[], None]
"""Puts prepared weights in use; quick."""


class Drafter(Protocol):
    """Proposes the target's next tokens.

    Rows are the engine's row numbers 0..B-1; a drafter with a cache keeps it by row.
    """

    id: DrafterId
    """Changes when other weights are swapped in."""
    needs_hidden: bool
    """Whether it is trained on the target's hidden states, so that outcomes must include them."""

    def propose(self, batch: DraftBatch) -> Proposal:
        """Propose up to `batch.lengths[b]` tokens for each row. Called between two passes of the target only."""
        ...

    def reset_row(self, row: int) -> None:
        """Begin a new query in a row, which must not see the last one's state."""
        ...

    def swap_rows(self, row: int, other: int) -> None:
        """Exchange the state of two rows."""
        ...

    def adopt(self, other: Drafter) -> None:
        """Take over the rows of another drafter with the same name and weights, which is not used afterwards.

        Args:
            other: the drafter by another back end.
        """
        ...


@runtime_checkable
class Swappable(Protocol):
    """A drafter whose weights can be replaced while it serves; one without weights, such as a lookup, is none."""

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors of a drafter version."""
        ...

    def prepare(self, state: Mapping[str, torch.Tensor], version: int) -> SwapIn:
        """Check new weights and prepare them, on any thread, while the old ones serve.

        Returns:
            A function that puts them in use, to be called between two steps. The drafter's cache is kept.

        Raises:
            WeightsRefusedError: a tensor is missing, unknown or of another shape, or holds NaN or infinity.
        """
        ...
