"""The gate: a candidate is published only if it beats the serving version on the newest held-out outcomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from trainer.batches import Batch
from trainer.student import Student


@dataclass(frozen=True, slots=True)
class Measurement:
    """Held-out acceptance of one set of weights."""

    acceptance_by_depth: tuple[float, ...]
    """For depths 1, 2, …: accepted / reached, where a proposal is reached if all proposals before it are accepted."""
    num_positions: int

    @property
    def acceptance(self) -> float:
        """Of the first proposal. The gate decides by this, as does the watch after a swap."""
        return self.acceptance_by_depth[0]


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Whether to publish, and the measurements behind it."""

    published: bool
    worse: bool
    """The candidate is worse by at least the margin, so the training since the serving version should be undone."""
    figures: dict[str, float]
    """candidate, serving, margin, records, positions, published (1 or 0), and depth_1, depth_2, … of the candidate."""


def measure(student: Student, batches: Sequence[Batch], between: Callable[[], None] = lambda: None) -> Measurement:
    """Acceptance over all batches; calls `between` after each."""
    accepted_D: Tensor | float = 0.0
    reached_D: Tensor | float = 0.0
    for batch in batches:
        sums = student.acceptance(batch)
        accepted_D, reached_D = accepted_D + sums.accepted_D, reached_D + sums.reached_D
        between()
    assert isinstance(accepted_D, Tensor) and isinstance(reached_D, Tensor)
    by_depth = (accepted_D / reached_D.clamp(min=1e-9)).tolist()
    return Measurement(tuple(by_depth), round(float(reached_D[0])))


def decide(candidate: Measurement, serving: Measurement, *, margin: float, num_records: int) -> GateDecision:
    """Publish if the candidate gains at least `margin`; both were measured on the same `num_records` records."""
    published = candidate.acceptance >= serving.acceptance + margin
    figures = {
        "candidate": candidate.acceptance,
        "serving": serving.acceptance,
        "margin": margin,
        "records": float(num_records),
        "positions": float(candidate.num_positions),
        "published": float(published),
    }
    for depth, acceptance in enumerate(candidate.acceptance_by_depth, start=1):
        figures[f"depth_{depth}"] = acceptance
    return GateDecision(published, candidate.acceptance <= serving.acceptance - margin, figures)
