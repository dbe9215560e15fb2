"""Runs arms live: an engine decodes with its target, and the trainer learns from what that engine recorded.

Slower than the replay, and needed where the target's distributions depend on what was drafted: after rejected tokens.
The engine and the trainer take turns in one process, by count: a query, then its share of training steps.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.adaptation.lab import Run
from benchmarks.adaptation.learner import Learner, Spent, own_folder
from benchmarks.adaptation.replay import score
from benchmarks.adaptation.scores import Score
from benchmarks.adaptation.streams import Prompt
from osd.assembly.drafter import open_store
from osd.assembly.engine import load_engine, use_threads
from osd.assembly.kernels import prepare_backend
from osd.config.settings import Config
from osd.engine.engine import Engine
from osd.loading.resolve import ResolvedTarget
from osd.ports.drafter import Swappable
from osd.records.outcome import Outcome
from osd.records.query import Request, SamplingParams
from trainer.offline.answers import Collector

LIVE_ARMS = ("frozen", "online", "online+rejected")
"""The last is trained on rejected tokens as well."""


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """The settings that all live runs share."""

    length: int
    """Speculation length."""
    max_tokens: int
    """Longest answer."""
    steps_per_query: float
    rejected_top_k: int
    rejected_loss: str


class Query(NamedTuple):
    """A prompt of a stream."""

    request_id: str
    """As in the recorded answers, by which the trainer decides what it holds out."""
    prompt: Prompt


def draw_queries(prompts: Sequence[Prompt], num: int, seed: int) -> list[Query]:
    """So many queries in random order; the same as in a replay of as many recorded answers."""
    shuffled = [Query(f"{prompt.domain}-{number}", prompt) for number, prompt in enumerate(prompts)]
    random.Random(seed).shuffle(shuffled)
    return shuffled[:num]


def run_live(
    config: Config,
    resolved: ResolvedTarget,
    settings: LiveSettings,
    arm: str,
    queries: Sequence[Query],
    seed: int,
    on_query: Callable[[int, Score], None] = lambda number, score: None,
) -> Run:
    """Decode queries one at a time; each is scored before anything is learnt from it.

    Args:
        config: target, drafter and trainer sections are used.
        resolved: the target.
        settings: what all runs share.
        arm: of `LIVE_ARMS`.
        queries: in order.
        seed: of the trainer's draws.
        on_query: told of each query's number and score.
    """
    scores = []
    with tempfile.TemporaryDirectory(prefix="osd-adaptation-") as scratch:
        own = own_folder(_config_of(config, settings, arm, seed), Path(scratch))
        live = _Live(own, resolved, settings)
        for number, query in enumerate(queries, start=1):
            outcome = live.answer(query)
            scores.append(score(outcome.rounds, len(outcome.output_ids)))
            if arm != "frozen":
                live.learn(outcome)
            on_query(number, scores[-1])
        return Run(arm, seed, [query.prompt.domain for query in queries], scores, live.spent, live.drifts)


def _config_of(config: Config, settings: LiveSettings, arm: str, seed: int) -> Config:
    """An arm's configuration: rounds of a fixed length by the learned drafter alone."""
    learns_from_rejected = arm == "online+rejected"
    sections = {
        "speculation": {"fixed_length": settings.length, "max_length": settings.length, "enabled": True},
        "drafter": {"suffix": False, "seed": seed},
        "outcomes": {"rejected_top_k": settings.rejected_top_k if learns_from_rejected else 0},
        "trainer": {"seed": seed, "rejected_loss": settings.rejected_loss if learns_from_rejected else "none"},
    }
    return config.model_copy(
        update={name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
    )


class _Live:
    """An engine, and the trainer that learns from its outcomes."""

    def __init__(self, config: Config, resolved: ResolvedTarget, settings: LiveSettings) -> None:
        self._settings, self._collector = settings, Collector()
        use_threads(config)
        prepared = prepare_backend(config.target, resolved.folder, may_serve_without=False)
        self._store = open_store(config, resolved)
        self._engine: Engine = load_engine(
            config, resolved, prepared, self._store, recorder=self._collector, on_event=lambda event: None
        )
        torch.set_num_threads(config.trainer.threads)  # as the served trainer does
        hidden_size = self._engine.target.hidden_SLH.shape[2]
        self._learner = Learner(config, resolved, hidden_size, settings.steps_per_query)

    @property
    def spent(self) -> Spent:
        """By the trainer."""
        return self._learner.spent

    @property
    def drifts(self) -> list[tuple[int, str]]:
        """See `Run`."""
        return self._learner.drifts

    def answer(self, query: Query) -> Outcome:
        """Decode a query greedily; returns what the engine recorded."""
        params = SamplingParams(temperature=0.0, max_tokens=self._settings.max_tokens)
        domain, messages = query.prompt
        ids = self._engine.codec.encode_chat(messages)
        self._engine.submit(Request(request_id=query.request_id, prompt_ids=ids, params=params, domain=domain))
        while self._engine.has_work:
            self._engine.step()
        return self._collector.outcomes.pop()

    def learn(self, outcome: Outcome) -> None:
        """Train, and swap what was published into the engine."""
        self._learner.learn(outcome)
        number = self._learner.drafter.id.version
        serving = self._engine.arm(self._learner.drafter.id.name).drafter
        if number != serving.id.version:
            assert isinstance(serving, Swappable)
            manifest, state = self._store.load(number)
            self._engine.load_drafter(manifest.kind, manifest, serving.prepare(state, number))
