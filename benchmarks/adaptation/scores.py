"""What a replayed query is scored by, and how sure a difference between two arms is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

_NUM_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Score:
    """One query's rounds, summed; under sampling their expectations. Sums of scores are scores."""

    rounds: float = 0.0
    committed: float = 0.0
    """Tokens of the answer that rounds committed: all but the first, which the prefill yields."""
    drafted: float = 0.0
    """Rounds that proposed something."""
    first_accepted: float = 0.0
    """Of those, how many kept the first proposed token."""
    accepted: float = 0.0
    examined: float = 0.0
    """Proposed tokens that were compared: those accepted, and the first rejected one of each round."""

    def __add__(self, other: Score) -> Score:
        """Both queries' rounds."""
        return Score(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[float, ...]:
        """In the order of the fields."""
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
        """Token acceptance rate as *Online Speculative Decoding* defines it (arXiv 2310.07177): the mean, over the
        tokens examined, of the sum over x of min(p(x), q(x)), p being the target's distribution and q the drafter's.
        That is the probability of acceptance, of which `accepted` adds up what came of it.
        """
        return self.accepted / self.examined if self.examined else 0.0


def total(scores: Sequence[Score]) -> Score:
    """All queries' rounds; ratios are taken of sums."""
    return Score(*np.sum([score.values() for score in scores], axis=0).tolist()) if scores else Score()


@dataclass(frozen=True, slots=True)
class Gain:
    """How much longer one arm's acceptance length is than another's, on the same answers."""

    mean: float
    low: float
    """Lower end of the 95% interval."""
    high: float


def length_gain(arm: Sequence[Sequence[Score]], base: Sequence[Sequence[Score]], seed: int = 0) -> Gain:
    """By how much the arm's acceptance length is above the base's: paired bootstrap over queries and runs.

    Both saw the same answers, so a resample takes the same queries of both. Rounds of one query are not independent
    of one another; whole queries are drawn.

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
    """How many queries were seen when the gain, over a window, first reached a share of the final window's.

    None where there is no gain at the end.

    Args:
        arm: scores in order.
        base: the same queries.
        share: of the eventual gain.
        window: queries that a running figure is taken over.
    """
    gains = [
        total(arm[end - window : end]).length - total(base[end - window : end]).length
        for end in range(window, len(arm) + 1)
    ]
    if not gains or gains[-1] <= 0:
        return None
    return window + next(number for number, gain in enumerate(gains) if gain >= share * gains[-1])
