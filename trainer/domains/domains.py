"""Trains drafters of single domains beside the base drafter, from the same outcome stream and in the same time.

A domain with enough outcomes gets a trainer of its own (`Trainer`: replay, gate, optimizer), which learns
from that domain's outcomes only. It starts from the drafter that is nearest to the domain, and publishes a first
version only if the gate finds it better than the base drafter on the domain's held-out queries. Until then, and
wherever that never happens, the base drafter serves the domain; and so it does again once it is as good
(trainer/gate/split_watch.py).
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from osd.config.trainer import TrainerConfig
from osd.io.folder import Folder
from osd.ports.outcomes import OutcomeSource
from osd.ports.weight_store import WeightStore
from osd.records.errors import OsdError
from osd.records.events import Event, EventKind
from osd.records.outcome import Outcome
from osd.records.query import DEFAULT_DOMAIN
from osd.records.status import DomainTraining, TrainerStatus
from trainer.domains.branch_store import BASE_VERSION, BranchStore
from trainer.domains.fork import Fork
from trainer.gate.gate import measure
from trainer.gate.split_watch import LEAST_RECORDS, SplitWatch
from trainer.loop.loop import Trainer
from trainer.replay.replay import is_held_out
from trainer.students.student import Student

_log = logging.getLogger(__name__)
MIN_DOMAIN_RECORDS = 64
"""Outcomes of a domain that are needed before a drafter of its own is tried; one in four is held out by default."""
_AWAY_OUTCOMES = 1000
"""A domain of which none of so many outcomes was gives its place to another."""
_LEAST_REPLAY_BYTES = 1 << 20
_MAX_LABELS = 64
"""Clients choose the labels; later ones are left to the base drafter."""
_SAID_BY_BASE: frozenset[EventKind] = frozenset({"pause", "resume", "drift"})


class ListedDomains(Protocol):
    """The domains that have a drafter of their own (implemented by `osd.io.domains.listed.DomainList`)."""

    def read(self) -> Sequence[str]:
        """All of them."""
        ...

    def add(self, domain: str) -> None:
        """Add one."""
        ...


@dataclass(frozen=True, slots=True)
class DomainParts:
    """What trainers of domains are made of."""

    most: int
    """Domains that are trained at once."""
    listed: ListedDomains
    store_of: Callable[[str], WeightStore]
    """The versions of a domain's drafter."""
    folder_of: Callable[[str], Path | Folder]
    """Where a domain's trainer keeps its checkpoint."""


class DomainTrainers(Trainer):
    """The base drafter's trainer, with those of domains beside it: after each of its turns one of them has a turn.

    Args:
        parts: what trainers of domains are made of.
        config: see `Trainer`; a domain's replay gets its part of `replay_bytes`, beside the base drafter's.
        student: see `Trainer`.
        source: see `Trainer`.
        store: of the base drafter.
        checkpoint_folder: of the base drafter's trainer.
        options: see `Trainer`.
    """

    def __init__(
        self,
        parts: DomainParts,
        config: TrainerConfig,
        student: Student,
        source: OutcomeSource,
        store: WeightStore,
        checkpoint_folder: Path | Folder,
        **options: Any,
    ) -> None:
        self._parts, self._store, self._options = parts, store, options
        self._own: dict[str, Trainer] = {}
        """By domain, the one whose turn is next first."""
        self._watches: dict[str, SplitWatch] = {}
        self._num_outcomes: Counter[str] = Counter()
        self._last_seen: dict[str, int] = {}
        """Domain to the number of outcomes, of all domains, that had come with its last one."""
        self._had_one = frozenset(parts.listed.read())
        """Domains that had a drafter of their own when this process began: it is trained on with the next outcome."""
        self._fork = Fork(source, self._count)
        super().__init__(config, student, self._fork, store, checkpoint_folder, **options)
        for _, outcome in self._replay.since(0):
            self._count(outcome.domain)

    def run_once(self, block_ms: int = 0) -> TrainerStatus:
        """See `Trainer`; then one domain's trainer has a turn."""
        super().run_once(block_ms)
        self._open_due()
        if self._own:
            domain = next(iter(self._own))
            trainer = self._own[domain] = self._own.pop(domain)
            trainer._stop = self._stop
            is_resting = self._paused.is_set() or domain in self.demands.frozen
            (trainer.pause if is_resting else trainer.resume)()
            trainer.run_once()
            if not is_resting and self._lease.is_held():
                self._merge_if_as_good(domain, trainer)
        self._status = self._with_domains(self._status)
        return self._status

    def run_forever(self, stop: threading.Event) -> None:
        """See `Trainer`."""
        super().run_forever(stop)
        for trainer in self._own.values():
            trainer.checkpoint()

    @property
    def worth(self) -> float:
        """See `Trainer`: of the drafter that it is worth most for."""
        return max(super().worth, *(trainer.worth for trainer in list(self._own.values())), 0.0)

    def _count(self, domain: str) -> None:
        if domain == DEFAULT_DOMAIN or (domain not in self._num_outcomes and len(self._num_outcomes) >= _MAX_LABELS):
            return
        self._num_outcomes[domain] += 1
        self._last_seen[domain] = self._num_outcomes.total()

    def _open_due(self) -> None:
        """Give a trainer to a domain that has come to enough outcomes, if there is a place for it."""
        due = [
            domain
            for domain, number in self._num_outcomes.items()
            if domain not in self._own and (number >= MIN_DOMAIN_RECORDS or domain in self._had_one)
        ]
        if not due:
            return
        domain = max(due, key=self._last_seen.__getitem__)
        if len(self._own) >= self._parts.most:
            oldest = min(self._own, key=self._last_seen.__getitem__)
            if self._num_outcomes.total() - self._last_seen[oldest] < _AWAY_OUTCOMES:
                return
            self._own.pop(oldest).checkpoint()
            del self._watches[oldest]
            self._fork.close(oldest)
        self._own[domain] = self._open(domain)
        self._watches[domain] = SplitWatch(self._parts.store_of(domain), self._store)

    def _open(self, domain: str) -> Trainer:
        known = [outcome for _, outcome in self._replay.since(0) if outcome.domain == domain]
        shared = {
            "min_records": max(self._config.min_records, 0 if domain in self._had_one else MIN_DOMAIN_RECORDS),
            "replay_bytes": max(self._config.replay_bytes // self._parts.most, _LEAST_REPLAY_BYTES),
        }
        student, branch = self._student.twin(), self._fork.branch(domain)
        trainer = Trainer(
            self._config.model_copy(update=shared),
            student,
            branch,
            BranchStore(self._parts.store_of(domain), self._store, partial(self._parts.listed.add, domain)),
            self._parts.folder_of(domain),
            **{**self._options, "on_event": partial(self._tell, domain)},
        )
        is_new = trainer.status().steps == 0 and self._parts.store_of(domain).latest() is None
        trainer.run_once()  # loads the version that it goes on from
        if is_new:
            self._start_near(domain, trainer, student, known)
        for number, outcome in enumerate(known):
            branch.put(f"known-{number}", outcome)
        return trainer

    def _start_near(self, domain: str, trainer: Trainer, student: Student, known: Sequence[Outcome]) -> None:
        """Load the drafter that has the longest acceptance length on a new domain's held-out queries."""
        held_out = [one for one in known if is_held_out(one.request_id, self._config.held_out_share)]
        batches = trainer._data.to_judge_by(held_out)
        stores = {other: self._parts.store_of(other) for other in self._own}
        starts = {other: latest for other, store in stores.items() if (latest := store.latest()) is not None}
        if not (batches and starts):
            return
        state, length = student.state(), measure(student, batches).length
        nearest = "the base drafter"
        for other, manifest in starts.items():
            student.load_state(stores[other].load(manifest.number)[1])
            if (found := measure(student, batches).length) > length:
                state, length, nearest = student.state(), found, f"the drafter of domain {other!r}"
        student.load_state(state)
        _log.info("domain %r starts from %s, of acceptance length %.3f on its queries", domain, nearest, length)

    def _merge_if_as_good(self, domain: str, trainer: Trainer) -> None:
        """Drop a domain's drafter that is no longer better than the base drafter."""
        watch, num_outcomes = self._watches[domain], self._num_outcomes[domain]
        if not watch.is_due(num_outcomes) or trainer._replay.num_held_out < LEAST_RECORDS:
            return
        batches = trainer._data.held_out().get(domain, [])
        try:
            if batches and watch.has_failed(trainer._student, batches, num_outcomes, self._yield_to_serving):
                reason = watch.merge()
                self.event("merge", f"the base drafter serves domain {domain!r} again: {reason}", **watch.figures)
        except OsdError as error:
            self.problem(f"cannot compare the drafter of domain {domain!r} with the base drafter: {error}")

    def _tell(self, domain: str, event: Event) -> None:
        """Pass on what a domain's trainer tells, except for what the base drafter's tells as well."""
        if event.kind in _SAID_BY_BASE:
            return
        message = re.sub(rf"version {BASE_VERSION}\b", "the base drafter", event.message)
        data = {name: value for name, value in event.data.items() if (name, value) != ("version", BASE_VERSION)}
        self._on_event(replace(event, message=f"domain {domain!r}: {message}", data=data))

    def _with_domains(self, status: TrainerStatus) -> TrainerStatus:
        """The base drafter's status with what domains' trainers add to it."""
        found = {domain: trainer.status() for domain, trainer in sorted(self._own.items())}
        every = [status, *found.values()]
        is_training = any(one.state == "training" for one in found.values())
        return replace(
            status,
            state="training" if is_training and status.state in ("waiting_for_data", "yielding") else status.state,
            steps=sum(one.steps for one in every),
            trained_tokens=sum(one.trained_tokens for one in every),
            training_s=sum(one.training_s for one in every),
            drift=status.drift | {name: one.drift[name] for name, one in found.items() if name in one.drift},
            message="; ".join(
                filter(None, [status.message, *(f"{n}: {o.message}" for n, o in found.items() if o.message)])
            ),
            domains={
                domain: DomainTraining(
                    state=one.state,
                    steps=one.steps,
                    records=one.replay_records + one.held_out_records,
                    published_version=max(one.published_version, 0),
                    gate=one.gate,
                    against_base=self._watches[domain].figures,
                )
                for domain, one in found.items()
            },
        )
