"""Scores of replayed queries, and confidence intervals for the difference between two arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

_NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Score:
    """The sums over one query's rounds; with sampling, their expectations. Scores can be added."""

    rounds: float = 0.0
    committed: float = 0.0
    """Tokens of the answer that rounds committed: all but the first, which comes from prefill."""
    drafted: float = 0.0
    """Rounds with a proposal."""
    first_accepted: float = 0.0
    """How many of those accepted the first proposed token."""
    accepted: float = 0.0
    examined: float = 0.0
    """Proposed tokens that were verified: accepted ones, and the first rejected one of each round."""

    def __add__(self, other: Score) -> Score:
        """The sum of both queries."""
        return Score(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[float, ...]:
        """The fields' values, in order."""
        return tuple(asdict(self).values())

    @property
    def length(self) -> float:
        """Acceptance length: committed / rounds."""
        return self.committed / self.rounds if self.rounds else 0.0

    @property
    def first(self) -> float:
        """First-token acceptance."""
        return self.first_accepted / self.drafted if self.drafted else 0.0

    @property
    def alpha(self) -> float:
        """Token acceptance rate as defined in *Online Speculative Decoding* (arXiv 2310.07177): the mean, over examined
        tokens, of the sum over x of min(p(x), q(x)), with the target's distribution p and the drafter's q. That is the
        probability of acceptance, of which `accepted` counts the successes.
        """
        return self.accepted / self.examined if self.examined else 0.0


def total(scores: Sequence[Score]) -> Score:
    """The sum of all queries; ratios are ratios of sums."""
    return Score(*np.sum([score.values() for score in scores], axis=0).tolist()) if scores else Score()


@dataclass(frozen=True, slots=True)
class Gain:
    """The difference between two arms' acceptance lengths on the same answers."""

    mean: float
    low: float
    """Lower end of the 95% interval."""
    high: float


def length_gain(arm: Sequence[Sequence[Score]], base: Sequence[Sequence[Score]], seed: int = 0) -> Gain:
    """The arm's acceptance length minus the base's, by a paired bootstrap over queries and runs.

    Both arms saw the same answers, so a resample draws the same queries for both. Whole queries are drawn, since rounds
    of one query are not independent.

    Args:
        arm: by run (that is, seed of the experiment), scores in the order of its queries.
        base: the same queries of the same runs.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    pairs = [
        np.array([[(a.committed, a.rounds), (b.committed, b.rounds)] for a, b in zip(one, other, strict=True)])
        for one, other in zip(arm, base, strict=True)
    ]
    gains = np.empty(_NUM_RESAMPLES)
    for number in range(_NUM_RESAMPLES):
        runs = rng.integers(len(pairs), size=len(pairs))
        sums = sum(pairs[run][rng.integers(len(pairs[run]), size=len(pairs[run]))].sum(axis=0) for run in runs)
        gains[number] = _gain(sums)
    low, high = np.quantile(gains, (0.025, 0.975))
    return Gain(_gain(sum(run.sum(axis=0) for run in pairs)), float(low), float(high))


def _gain(sums: np.ndarray | float) -> float:
    (committed, rounds), (base_committed, base_rounds) = np.asarray(sums)
    return float(committed / rounds - base_committed / base_rounds)


def queries_to_gain(arm: Sequence[Score], base: Sequence[Score], *, share: float, window: int) -> int | None:
    """After how many queries the gain, over a window, first reached a share of the final window's gain.

    None if there is no gain at the end.

    Args:
        arm: scores in order.
        base: the same queries.
        share: of the eventual gain.
        window: number of queries for running figures.
    """
    gains = [
        total(arm[end - window : end]).length - total(base[end - window : end]).length
        for end in range(window, len(arm) + 1)
    ]
    if not gains or gains[-1] <= 0:
        return None
    return window + next(number for number, gain in enumerate(gains) if gain >= share * gains[-1])
