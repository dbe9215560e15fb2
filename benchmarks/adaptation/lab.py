"""Runs an experiment: one arm (a way of drafting and learning) over recorded answers in one order."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.adaptation.learner import Learner, Spent, own_folder
from benchmarks.adaptation.replay import EitherProposer, Proposer, SuffixProposer, as_decoded, replay, score
from benchmarks.adaptation.sampled import acceptance, expected_score
from benchmarks.adaptation.scores import Score
from osd.config.drafter import DrafterConfig
from osd.config.settings import Config
from osd.drafters.suffix.pool import AnswerPool
from osd.loading.resolve import ResolvedTarget
from osd.records.errors import OsdError
from osd.records.outcome import Outcome, Round


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of drafting and learning."""

    kind: str = "feature"
    """Kind of the learned drafter; "" for none."""
    pretrained: bool = True
    """Starts with the shipped drafter of its kind, if there is one."""
    is_online: bool = False
    """Learns from each query after it was scored."""
    is_tuned: bool = False
    """Is trained offline on other queries of the same streams before the first query."""
    suffix: bool = False
    """Uses the suffix proposal when it promises more accepted tokens."""
    by_domain: bool = False
    """One drafter and trainer per domain; otherwise one for all."""


ARMS: Mapping[str, Arm] = {
    "frozen": Arm(),
    "online": Arm(is_online=True),
    "offline": Arm(is_tuned=True),
    "suffix": Arm(kind="", suffix=True),
    "frozen+suffix": Arm(suffix=True),
    "online+suffix": Arm(is_online=True, suffix=True),
    "cold": Arm(pretrained=False, is_online=True),
    "cold frozen": Arm(pretrained=False),
    "model": Arm(kind="model", pretrained=False, is_online=True),
    "model frozen": Arm(kind="model", pretrained=False),
    "online by domain": Arm(is_online=True, by_domain=True),
}


@dataclass(frozen=True, slots=True)
class Lab:
    """The settings that all runs share."""

    config: Config
    resolved: ResolvedTarget
    hidden_size: int
    length: int
    """Speculation length."""
    max_tokens: int
    """Longest answer."""
    steps_per_query: float
    passes: float
    """Passes over the other queries, for an arm that is tuned offline."""
    pool_bytes: int
    """Memory for the suffix arm's recent answers."""

    def described(self) -> dict[str, float]:
        """The settings that affect a run's result."""
        return {
            "length": self.length,
            "max_tokens": self.max_tokens,
            "steps_per_query": self.steps_per_query,
            "passes": self.passes,
            "pool_bytes": self.pool_bytes,
        }


@dataclass(frozen=True, slots=True)
class Run:
    """The result of one arm with one seed."""

    arm: str
    seed: int
    domains: list[str]
    """The domain of each query."""
    scores: list[Score]
    spent: Spent
    drifts: list[tuple[int, str]]
    """After how many queries a trainer reported drift, and what it said; of those of its domain where it has one."""

    def as_json(self) -> dict[str, object]:
        """The run as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Run:
        """The inverse of `as_json`."""
        return cls(
            arm=data["arm"],
            seed=data["seed"],
            domains=list(data["domains"]),
            scores=[Score(**one) for one in data["scores"]],
            spent=Spent(**data["spent"]),
            drifts=[(query, message) for query, message in data["drifts"]],
        )


def run_arm(
    lab: Lab,
    name: str,
    outcomes: Sequence[Outcome],
    others: Sequence[Outcome],
    seed: int,
    on_query: Callable[[int, Score], None] = lambda number, score: None,
) -> Run:
    """Replay an order of answers with one arm; every query is scored before anything is learnt from it.

    Args:
        lab: what all runs share.
        name: of `ARMS`.
        outcomes: recorded answers, in the order of the stream.
        others: of the same streams; what an arm that is tuned offline is trained on.
        seed: of the trainer's draws.
        on_query: told of each query's number and score.
    """
    arm, scores = ARMS[name], []
    with tempfile.TemporaryDirectory(prefix="osd-adaptation-") as scratch:
        drafting = _Drafting(lab, arm, Path(scratch), others, seed)
        for outcome in outcomes:
            scores.append(drafting.score(outcome))
            drafting.learn(outcome)
            on_query(len(scores), scores[-1])
        domains = [outcome.domain for outcome in outcomes]
        return Run(name, seed, domains, scores, drafting.spent(), drafting.drifts())


def draw_order(outcomes: Sequence[Outcome], num: int, seed: int) -> tuple[list[Outcome], list[Outcome]]:
    """So many answers in random order, and the others."""
    shuffled = list(outcomes)
    random.Random(seed).shuffle(shuffled)
    return shuffled[:num], shuffled[num:]


class _Drafting:
    """An arm at work, over all domains."""

    def __init__(self, lab: Lab, arm: Arm, scratch: Path, others: Sequence[Outcome], seed: int) -> None:
        self._lab, self._arm, self._scratch, self._others, self._seed = lab, arm, scratch, others, seed
        self._pool = AnswerPool(lab.pool_bytes)
        self._rounds: tuple[Round, ...] = ()
        """Of the query that was scored last; none of a sampled one, whose rounds are only known on average."""
        self._learners: dict[str, Learner] = {}
        self._proposers: dict[str, Proposer] = {}

    def score(self, outcome: Outcome) -> Score:
        """Of a query that nothing was learnt from yet."""
        key = outcome.domain if self._arm.by_domain else ""
        if key not in self._proposers:
            self._proposers[key] = self._new_proposer(key)
        lab = self._lab
        if outcome.sampling.temperature == 0.0 or not self._arm.kind:
            rounds = replay(self._proposers[key], outcome, length=lab.length, max_tokens=lab.max_tokens)
            self._rounds = tuple(rounds)
            return score(rounds, len(outcome.output_ids))
        if self._arm.suffix:
            raise OsdError("suffix proposals beside a learned drafter's are replayed for greedy answers only")
        student = self._learners[key].forced(lab.length)
        return expected_score(acceptance(student, outcome), max_tokens=lab.max_tokens)

    def learn(self, outcome: Outcome) -> None:
        """After its score was taken, from its rounds as this arm decoded them."""
        self._pool.add(outcome.domain, outcome.output_ids)
        if self._arm.is_online:
            learner = self._learners[outcome.domain if self._arm.by_domain else ""]
            learner.learn(as_decoded(outcome, self._rounds, self._arm.kind))

    def drifts(self) -> list[tuple[int, str]]:
        """What all trainers reported."""
        return [drift for learner in self._learners.values() for drift in learner.drifts]

    def spent(self) -> Spent:
        """By all trainers together."""
        total = Spent()
        for learner in self._learners.values():
            for field in asdict(total):
                setattr(total, field, getattr(total, field) + getattr(learner.spent, field))
        return total

    def _new_proposer(self, key: str) -> Proposer:
        suffix = SuffixProposer(self._pool)
        if not self._arm.kind:
            return suffix
        config = own_folder(self._lab.config, self._scratch / f"state-{len(self._learners)}")
        drafter = {"kind": self._arm.kind, "pretrained": self._arm.pretrained, "seed": self._seed}
        trainer = config.trainer.model_copy(update={"seed": self._seed})
        drafter_config = DrafterConfig.model_validate({**config.drafter.model_dump(), **drafter})
        config = config.model_copy(update={"drafter": drafter_config, "trainer": trainer})
        learner = Learner(config, self._lab.resolved, self._lab.hidden_size, self._lab.steps_per_query)
        self._learners[key] = learner
        if self._arm.is_tuned:
            learner.train_offline(self._others, self._lab.passes)
        if not self._arm.suffix:
            return learner.proposer
        return EitherProposer(suffix, learner.proposer, learner.drafter, self._lab.length, learner.gate)
