"""The gate: a candidate is published only if it beats the serving version on the newest held-out traffic."""

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
    """Of depth 1, 2, …: the share accepted of the proposals that are reached, that is, whose predecessors were
    accepted."""
    num_positions: int

    @property
    def acceptance(self) -> float:
        """Of the first proposal: what decides, and what the watch after a swap looks at, too."""
        return self.acceptance_by_depth[0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to publish, and the figures that say why."""

    published: bool
    worse: bool
    """By the margin: what training did is better undone."""
    figures: dict[str, float]
    """candidate, serving, margin, records, positions, published (1 or 0), and depth_1, depth_2, … of the candidate."""


def measure(student: Student, batches: Sequence[Batch], between: Callable[[], None] = lambda: None) -> Measurement:
    """Acceptance over all batches; `between` is called after each."""
    accepted_D: Tensor | float = 0.0
    reached_D: Tensor | float = 0.0
    for batch in batches:
        sums = student.acceptance(batch)
        accepted_D, reached_D = accepted_D + sums.accepted_D, reached_D + sums.reached_D
        between()
    assert isinstance(accepted_D, Tensor) and isinstance(reached_D, Tensor)
    by_depth = (accepted_D / reached_D.clamp(min=1e-9)).tolist()
    return Measurement(tuple(by_depth), round(float(reached_D[0])))


def judge(candidate: Measurement, serving: Measurement, *, margin: float, num_records: int) -> Verdict:
    """Publish only on a gain of at least `margin`, both measured on the same records."""
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
    return Verdict(published, candidate.acceptance <= serving.acceptance - margin, figures)
