"""What the engine asks of a drafter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from osd.records.drafter_id import DrafterId

if TYPE_CHECKING:
    import torch

    from osd.records.proposal import DraftBatch, Proposal


SwapIn = Callable[[], None]
"""Puts prepared weights to use, at once."""


class Drafter(Protocol):
    """Guesses the target's next tokens. Serving side; training is `trainer`'s.

    Rows are the engine's compact row numbers 0..B-1; the drafter keeps its own cache by row, if it has one.
    """

    id: DrafterId
    """Changes when other weights are swapped in."""
    needs_hidden: bool
    """Whether it is trained on the target's last hidden states, so that outcomes must carry them."""

    def propose(self, batch: DraftBatch) -> Proposal:
        """Propose up to `batch.lengths[b]` tokens for each row. Called between steps' target passes only."""
        ...

    def reset_row(self, row: int) -> None:
        """Forget a row: a new query starts in it."""
        ...

    def swap_rows(self, row: int, other: int) -> None:
        """Let two rows' caches change places, so that decoding rows stay compact."""
        ...

    def adopt(self, other: Drafter) -> None:
        """Go on with the rows of another one of the same name and weights, which is not used after this.

        Args:
            other: it computes by torch's operations, this one by compiled kernels.
        """
        ...


@runtime_checkable
class Swappable(Protocol):
    """A drafter whose weights can be replaced while it serves; one that looks tokens up has none."""

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors that a weight version carries."""
        ...

    def prepare(self, state: Mapping[str, torch.Tensor], version: int) -> SwapIn:
        """Check new weights and bring them into the form that serves, on any thread, while the old ones serve on.

        Returns:
            What puts them to use, to be called between two steps; the cache stays.

        Raises:
            WeightsRefusedError: a tensor is missing, foreign, non-finite or of another shape.
        """
        ...
