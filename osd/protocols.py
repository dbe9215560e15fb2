"""What the parts expect of one another. Interfaces import no implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from osd.outcome import Outcome
from osd.types import WeightManifest

if TYPE_CHECKING:
    import torch

    from osd.proposal import DraftBatch, Proposal


SwapIn = Callable[[], None]
"""Puts prepared weights to use, at once."""


class Drafter(Protocol):
    """Guesses the target's next tokens for every decoding row. Serving side; training is `trainer`'s.

    Rows are the engine's compact row numbers 0..B-1; the drafter keeps its own cache by row.
    """

    kind: str
    version: int

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
        """Go on with the rows of another one of the same kind and weights, which is not used after this.

        Args:
            other: it computes by torch's operations, this one by compiled kernels.
        """
        ...

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


class OutcomeRecorder(Protocol):
    """Takes the making of an outcome off the engine's thread; never blocks, never raises."""

    def record(self, make: Callable[[], Outcome]) -> None:
        """Queue one."""
        ...

    def counters(self) -> dict[str, int]:
        """Monotone counts of what became of them."""
        ...


class OutcomeSink(Protocol):
    """Where the recorder puts outcomes."""

    def put(self, outcome: Outcome) -> None:
        """Append one outcome.

        Raises:
            OutcomeSinkError: it cannot be taken now; the caller keeps it.
        """
        ...


class OutcomeSource(Protocol):
    """Where the trainer reads outcomes, at least once each."""

    def read(self, max_count: int, block_ms: int) -> list[tuple[str, Outcome]]:
        """The next outcomes as (stream position, outcome), those unacknowledged by a dead reader first.

        Raises:
            OutcomeSinkError: the stream is away.
        """
        ...

    def ack(self, positions: Sequence[str]) -> None:
        """Never deliver these again: a checkpoint contains them.

        Raises:
            OutcomeSinkError: the stream is away.
        """
        ...

    def lag(self) -> int | None:
        """Entries not yet read; None when the stream is away."""
        ...


class WeightStore(Protocol):
    """Drafter versions on disk: published atomically, refused when torn."""

    def publish(
        self,
        state: Mapping[str, torch.Tensor],
        *,
        kind: str,
        config: Mapping[str, Any],
        parent: int | None,
        training_step: int = 0,
        stream_position: str = "",
        gate: Mapping[str, float] | None = None,
        note: str = "",
    ) -> WeightManifest:
        """Write a new version (number = newest + 1) and point `latest` at it."""
        ...

    def latest(self) -> WeightManifest | None:
        """The version that serving should use, or None when nothing was published."""
        ...

    def load(self, number: int) -> tuple[WeightManifest, dict[str, torch.Tensor]]:
        """Read and check one version.

        Raises:
            WeightsRefusedError: it is missing, torn, or does not match its manifest.
        """
        ...

    def list(self) -> list[WeightManifest]:
        """Every readable version, oldest first."""
        ...

    def roll_back(self, *, to: int | None = None, reason: str) -> WeightManifest:
        """Mark the latest version as rolled back and point `latest` at `to` (default: its newest sound predecessor).

        Raises:
            WeightsRefusedError: there is no such version to go back to.
        """
        ...
