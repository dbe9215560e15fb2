"""Verifies the replay: decodes the same queries live, with an engine and its target, and compares every round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.adaptation.replay import Proposer, replay
from osd.assembly.engine import open_engine
from osd.config.settings import Config
from osd.records.outcome import Outcome
from osd.records.query import Request, SamplingParams
from trainer.offline.answers import Collector


@dataclass(frozen=True, slots=True)
class Comparison:
    """The agreement of a replay with a live run."""

    queries: int
    equal_answers: int
    equal_rounds: int
    """Number of queries with the same answer, and with equal proposed and accepted counts in every round."""
    replayed_rounds: int
    live_rounds: int

    @property
    def is_equal(self) -> bool:
        """Whether all queries agree."""
        return self.equal_rounds == self.queries


def decode_live(
    config: Config,
    outcomes: Sequence[Outcome],
    *,
    length: int,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Outcome]:
    """Decode the prompts one at a time with an engine that drafts `length` tokens per round; returns the outcomes."""
    fixed = config.speculation.model_copy(update={"fixed_length": length, "enabled": True})
    collector = Collector()
    drafter = config.drafter.model_copy(update={"suffix": False})
    engine = open_engine(config.model_copy(update={"speculation": fixed, "drafter": drafter}), recorder=collector)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    for number, outcome in enumerate(outcomes):
        engine.submit(Request(request_id=outcome.request_id, prompt_ids=outcome.prompt_ids, params=params))
        while engine.has_work:
            engine.step()
        on_progress(number + 1)
    return collector.outcomes


def compare(
    proposer: Proposer, recorded: Sequence[Outcome], live: Sequence[Outcome], *, length: int, max_tokens: int
) -> Comparison:
    """Replay the recorded answers, and compare the rounds with those of the live run."""
    equal_answers = equal_rounds = num_replayed = num_live = 0
    for outcome, own in zip(recorded, live, strict=True):
        rounds = [
            (one.proposed, one.accepted) for one in replay(proposer, outcome, length=length, max_tokens=max_tokens)
        ]
        is_equal = own.output_ids == outcome.output_ids
        equal_answers += is_equal
        equal_rounds += is_equal and rounds == [(one.proposed, one.accepted) for one in own.rounds]
        num_replayed, num_live = num_replayed + len(rounds), num_live + len(own.rounds)
    return Comparison(len(recorded), equal_answers, equal_rounds, num_replayed, num_live)
