"""The gate: a candidate is published only if it beats the serving version on the newest held-out outcomes.

Both are measured on the same held-out outcomes by acceptance length, the tokens a round commits, which is what decides
the speed of decoding. Queries differ far more from one another than two versions differ on one query, so the gain is
taken query by query: a paired bootstrap (Efron 1979) over whole queries, since the rounds of one query are correlated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.examples.batches import Batch
from trainer.examples.examples import ExampleKey
from trainer.losses.acceptance import ChainSums
from trainer.students.student import Student

_NUM_RESAMPLES = 1000
_QUANTILES = (0.025, 0.975)
"""The ends of the 95% interval."""
_LEAST_LOSS = 0.02
"""Acceptance length. Less is borne: by a domain where others gain more, and by a candidate that trains on.

A step or two may well lose a thousandth of every held-out record, which is certain and says nothing of the next steps.
"""
_LEAST_DOMAIN_RECORDS = 3


@dataclass(frozen=True, slots=True)
class Measurement:
    """Held-out acceptance of one set of weights, by record: N queries, or stretches of long ones."""

    sums: ChainSums
    """[N, D]."""

    @classmethod
    def of(cls, parts: Sequence[Measurement]) -> Measurement:
        """All records of several measurements."""
        return cls(ChainSums(*(torch.cat(one) for one in zip(*(part.sums for part in parts), strict=True))))

    @classmethod
    def of_rows(cls, rows: Mapping[ExampleKey, ChainSums], keys: Iterable[ExampleKey]) -> Measurement:
        """These examples, of which each was measured."""
        return cls(ChainSums(*(torch.stack(one) for one in zip(*(rows[key] for key in keys), strict=True))))

    @property
    def acceptance_by_depth(self) -> tuple[float, ...]:
        """For depths 1, 2, …: accepted / reached; a proposal is reached if all proposals before it are accepted."""
        accepted_D, reached_D = (one.sum(dim=0) for one in self.sums)
        return tuple((accepted_D / reached_D.clamp(min=1e-9)).tolist())

    @property
    def acceptance(self) -> float:
        """Probability that the first proposed token is accepted, which the watch after a swap compares."""
        return self.acceptance_by_depth[0]

    @property
    def num_positions(self) -> int:
        """Positions at which a chain begins."""
        return round(float(self.sums.reached_BD[:, 0].sum()))

    @property
    def length(self) -> float:
        """Acceptance length with chains of D proposals: each round's accepted tokens and one more."""
        return 1.0 + float(self.sums.accepted_BD.sum()) / max(self.num_positions, 1)


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Whether to publish, and the measurements behind it."""

    published: bool
    worse: bool
    """The candidate certainly loses, and more than 0.02, so the training since the serving version should be undone."""
    figures: dict[str, float]
    """candidate, serving: acceptance of the first proposal; length, serving_length: acceptance length; gain_low,
    gain_high: the 95% interval of what the length gains; margin, records, positions, published (1 or 0), and depth_1,
    depth_2, … of the candidate.
    """
    losers: tuple[str, ...] = ()
    """Domains that would certainly lose, for which a candidate that gains on the whole is not published."""
    goes_back: bool = False
    """What is published is no candidate but the version that training began with; see `trainer.gate.origin`."""

    @property
    def is_promising(self) -> bool:
        """The candidate gains more than the margin, though perhaps not certainly."""
        return self.figures["length"] > self.figures["serving_length"] + self.figures["margin"]


def measure(
    student: Student,
    batches: Sequence[Batch],
    between: Callable[[], None] = lambda: None,
    known: MutableMapping[ExampleKey, ChainSums] | None = None,
) -> Measurement:
    """Acceptance over all batches, at least one.

    Args:
        student: the weights.
        batches: of held-out examples.
        between: called after each pass over a batch.
        known: rows that were measured before with the same weights, which are not measured again; new ones are added.
    """
    rows = {} if known is None else known
    for batch in batches:
        if missing := [number for number, key in enumerate(batch.keys) if key not in rows]:
            sums = student.acceptance(batch.rows(missing))
            for key, *own in zip((batch.keys[number] for number in missing), *sums, strict=True):
                rows[key] = ChainSums(*own)
            between()
    return Measurement.of_rows(rows, (key for batch in batches for key in batch.keys))


def decide(
    by_domain: Mapping[str, tuple[Measurement, Measurement]], *, margin: float, num_records: int
) -> GateDecision:
    """Publish if the 95% interval of the gain in acceptance length lies above `margin`, and no domain certainly loses.

    Without the second condition, a client that floods one domain would decide for all others.

    Args:
        by_domain: the student, and the version that serves, measured on the same batches of each domain.
        margin: see above; a candidate whose interval lies below -`margin`, and that loses more than 0.02, is worse.
        num_records: held-out records, for the figures.
    """
    candidate, serving = (Measurement.of(side) for side in zip(*by_domain.values(), strict=True))
    low, high = gain_interval(candidate, serving)
    losers = tuple(domain for domain, pair in by_domain.items() if _certainly_loses(*pair))
    published = low > margin and not losers
    figures = {
        "candidate": candidate.acceptance,
        "serving": serving.acceptance,
        "length": candidate.length,
        "serving_length": serving.length,
        "gain_low": low,
        "gain_high": high,
        "margin": margin,
        "records": float(num_records),
        "positions": float(candidate.num_positions),
        "published": float(published),
    }
    for depth, acceptance in enumerate(candidate.acceptance_by_depth, start=1):
        figures[f"depth_{depth}"] = acceptance
    worse = high < -margin and _loses(candidate, serving)
    return GateDecision(published, worse, figures, losers)


def _loses(candidate: Measurement, serving: Measurement) -> bool:
    return candidate.length < serving.length - _LEAST_LOSS


def _certainly_loses(candidate: Measurement, serving: Measurement) -> bool:
    if len(candidate.sums.accepted_BD) < _LEAST_DOMAIN_RECORDS:
        return False
    return _loses(candidate, serving) and gain_interval(candidate, serving)[1] < 0.0


def gain_interval(candidate: Measurement, serving: Measurement) -> tuple[float, float]:
    """The 95% interval of the candidate's acceptance length less the serving version's, by paired bootstrap.

    Resamples draw records with replacement, the same for both sides; the same records always give the same interval.
    """
    gained_N: NDArray[np.float64] = (candidate.sums.accepted_BD - serving.sums.accepted_BD).sum(dim=1).numpy()
    positions_N: NDArray[np.float64] = candidate.sums.reached_BD[:, 0].numpy()
    num = len(gained_N)
    counts_SN = np.random.default_rng(0).multinomial(num, np.full(num, 1.0 / num), size=_NUM_RESAMPLES)
    low, high = np.quantile((counts_SN @ gained_N) / np.maximum(counts_SN @ positions_N, 1.0), _QUANTILES)
    return float(low), float(high)
