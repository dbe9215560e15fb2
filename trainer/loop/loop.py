"""The trainer's loop: read outcomes, train while the engine is not busy, publish what beats the serving version.

consumes: outcomes from the stream; the weight store's `latest` pointer
waits for: enough outcomes, and new ones once all were trained on `passes` times; spare compute (`may_train`); an
    operator's `resume`
is unblocked by: a new outcome, the engine falling idle, `resume`, the `stop` event
on failure: stream unreachable: trains on from the replay and reconnects; disk full: reports an `error` event, trains on
    and tries again; a step with a NaN or infinite loss or gradient: skipped; killed: continues from its checkpoint,
    and outcomes that no checkpoint contains are delivered again
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osd.config.trainer import TrainerConfig
from osd.io.folder import Folder
from osd.ports.lease import TrainingLease, Unshared
from osd.ports.outcomes import OutcomeSource
from osd.ports.weight_store import WeightStore
from osd.records.errors import WeightsRefusedError
from osd.records.events import Event, EventKind
from osd.records.status import TrainerState, TrainerStatus
from trainer.drift.drift import DriftMonitor
from trainer.gate.gate import GateDecision
from trainer.gate.origin import NUM_RECORDS
from trainer.gate.publisher import Publisher
from trainer.loop.budget import TrainingBudget
from trainer.loop.checkpoint import Checkpoint, CheckpointFolder
from trainer.loop.demands import Demands
from trainer.loop.pace import Pace
from trainer.loop.stopwatch import Stopwatch
from trainer.optimization.step import TrainingStep, new_training_step
from trainer.replay.intake import Intake
from trainer.replay.replay import Replay
from trainer.replay.training_data import TrainingData
from trainer.students.student import Student
from trainer.students.token_counts import TokenCounts

_log = logging.getLogger(__name__)
_MIN_HELD_OUT_RECORDS = 3
_IDLE_S = 0.1
_BLOCK_MS = 200
_LONGEST_YIELD_S = 2.0
_STUDENT, _COUNTS = "student/", "token_counts"


class Trainer:
    """Distils a student online.

    `run_once` and `run_forever` belong to one thread; `pause`, `resume` and `status` may be called from any.

    Args:
        config: the `trainer` section.
        student: the drafter to train; loads the store's latest version, or the checkpoint if that descends from it.
        source: the outcome stream.
        store: where versions are published.
        checkpoint_folder: this trainer's own folder, or its path on a local disk.
        target_id: outcomes of other targets are skipped.
        may_train: False while the engine needs the machine.
        lease: while it is not held, another trainer may be at work, and nothing is read, trained, published or saved;
            None: there is no other.
        on_event: called on publishes, refusals, restarts, pauses and errors, on the thread where they happen.
        checkpoint_every_s: longest time between checkpoints, so the most work that a kill may cost.
        pause_after_error_s: pause after a step that failed.
        clock: monotonic seconds.

    Raises:
        ConfigError: the optimizer or its options are unknown.
    """

    def __init__(
        self,
        config: TrainerConfig,
        student: Student,
        source: OutcomeSource,
        store: WeightStore,
        checkpoint_folder: Path | Folder,
        *,
        target_id: str,
        may_train: Callable[[], bool] = lambda: True,
        lease: TrainingLease | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
        checkpoint_every_s: float = 60.0,
        pause_after_error_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._student, self._target_id = config, student, target_id
        self._may_train, self._on_event, self._clock = may_train, on_event, clock
        self._lease = lease or Unshared()
        self._replay = Replay(config.replay_bytes, config.held_out_share, config.held_out_records, config.seed)
        self._data = TrainingData(config, self._replay, student)
        self._counts = TokenCounts(student.alignment.vocab_tokens)
        self._drift = DriftMonitor()
        self._budget = TrainingBudget(config.passes)
        self._intake = Intake(source, self._replay, self._counts, self._drift, student.alignment, target_id, clock)
        self._publisher = Publisher(store, student, config.gate_margin, self, self._lease, config.first_version_share)
        self._folder = CheckpointFolder(checkpoint_folder)
        self._checkpoint_every_s, self._checkpointed_at_s = checkpoint_every_s, clock()
        self._pause_after_error_s = pause_after_error_s
        self._num_saved = 0
        """How many of all records ever seen the checkpoint contains."""
        self._dirty = False
        self._update = self._new_update()
        self.demands = Demands()
        self._pace = Pace(config.gate_every_steps)
        self._steps = self._trained_tokens = 0
        self._training_time = Stopwatch(clock)
        self._loss: float | None = None
        self._problem = ""
        self._paused, self._stop = threading.Event(), threading.Event()
        if checkpoint := self._folder.load():
            self._resume_from(checkpoint)
        self._status = self._report("waiting_for_data")

    def run_once(self, block_ms: int = 0) -> TrainerStatus:
        """Read outcomes (waiting at most `block_ms`), train one step if possible now, publish if due."""
        num_seen = self._replay.num_seen
        if self._lease.is_held():
            self._intake.read(block_ms)
            self._budget.earn(self._intake.new_tokens)
            self._dirty |= self._replay.num_seen > num_seen
            self._respond_to_drift()
            self._intake.ack()
        if self._publisher.follow():
            self._pace.steps_at_gate = self._steps
            self._update = self._new_update()
        state = self._state()
        if state == "training":
            with self._training_time:
                self._train()
                if self._gate_is_due() or (self.demands.publishes and self._replay.num_held_out):
                    self._attempt_to_publish()
        if (
            self._dirty or self._intake.unacked
        ) and self._clock() - self._checkpointed_at_s >= self._checkpoint_every_s:
            self.checkpoint()
        self._status = self._report(state)
        return self._status

    def run_forever(self, stop: threading.Event) -> None:
        """Run until `stop` is set, then save a checkpoint. Errors are reported and do not end it."""
        self._stop = stop
        while not stop.is_set():
            try:
                idle = self._status.state != "training"
                status = self.run_once(_BLOCK_MS if idle else 0)
            except Exception as error:
                _log.exception("the trainer's step failed")
                self.problem(f"training failed: {error}")
                stop.wait(self._pause_after_error_s)
                continue
            if status.state != "training":
                stop.wait(_IDLE_S)
        self.checkpoint()
        self._status = self._report("stopped")

    def pause(self) -> None:
        """Stop training until `resume`; outcomes are still read."""
        if not self._paused.is_set():
            self._paused.set()
            self.event("pause", "training paused")

    def resume(self) -> None:
        """Undo `pause`."""
        if self._paused.is_set():
            self._paused.clear()
            self.event("resume", "training resumed")

    @property
    def worth(self) -> float:
        """Share of what training may cost serving that it is worth now; 0 where there is nothing to train on.

        1 at first and after a publish; half as much after each candidate that gains nothing.
        """
        return self._pace.worth if self._status.state in ("training", "yielding") else 0.0

    def status(self) -> TrainerStatus:
        """The latest snapshot of the trainer's status."""
        return self._status

    def checkpoint(self) -> None:
        """Save everything, then acknowledge the outcomes that are now safe. A failed write is reported."""
        if not self._lease.is_held():
            return
        self._checkpointed_at_s = self._clock()
        # Rewritten now and then, since a file of outcomes stays for as long as the replay has one that is as old.
        is_whole = self._folder.num_records > 2 * (self._replay.num_train + self._replay.num_held_out)
        state = {f"{_STUDENT}{name}": tensor for name, tensor in self._student.state().items()}
        try:
            self._folder.save(
                tensors={**state, _COUNTS: self._counts.counts_V},
                optimizer=self._update.optimizer.state_dict(),
                progress=self._progress(),
                new_records=self._replay.since(0 if is_whole else self._num_saved),
                oldest=self._replay.oldest,
                is_whole=is_whole,
            )
        except OSError as error:
            self.problem(f"cannot save the trainer's checkpoint: {error}; free some disk space")
            return
        self._problem, self._dirty = "", False
        self._num_saved = self._replay.num_seen
        self._intake.mark_checkpointed()
        self._intake.ack()

    def problem(self, message: str) -> None:
        """Report a problem; one event for as long as the message stays the same."""
        if message != self._problem:
            _log.error("%s", message)
            self.event("error", message)
        self._problem = message

    def event(self, kind: EventKind, message: str, **data: float) -> None:
        """Emit an event for the operator."""
        self._on_event(Event(at_s=time.time(), kind=kind, message=message, data=dict(data)))

    def _state(self) -> TrainerState:
        if self._paused.is_set():
            return "paused"
        num_records = self._replay.num_train + self._replay.num_held_out
        if not self._publisher.serving or not self._replay.num_train or num_records < self._config.min_records:
            return "waiting_for_data"
        if self._budget.is_spent and not self.demands.trains_now:
            return "waiting_for_data"
        return "training" if self._has_time() and self._lease.is_held() else "yielding"

    def _respond_to_drift(self) -> None:
        """Where the traffic changed: prefer new outcomes, drop the optimizer's momentum, and warm up again.

        Momentum from before the change points in the wrong direction (SPAM, Huang et al. 2025, arXiv 2501.06842).
        """
        for drifted in self._intake.drifted:
            self.event("drift", drifted.message, **drifted.figures)
        if self._intake.drifted:
            self._replay.focus_on_present()
            self._counts.focus_on_present()
            self._update = self._new_update()
            self._pace.start_anew()

    def _train(self) -> None:
        if self._update.steps == 0:
            self._student.refresh_vocab(self._counts.counts_V)
        batches = self._data.for_step(without=self.demands.frozen)
        if not batches:
            self._stop.wait(_IDLE_S)
            return
        result = self._update.run(batches, between=self._yield_to_serving, scale=self._pace.rate)
        self._dirty = True
        self._budget.spend(result.num_tokens)
        if result.applied:
            self._steps += 1
            self._trained_tokens += result.num_tokens
            self._loss = result.loss

    def _gate_is_due(self) -> bool:
        return self._has_enough_held_out() and self._pace.is_gate_due(
            self._steps, self._replay.num_held_out, is_last=self._budget.is_spent
        )

    def _has_enough_held_out(self) -> bool:
        return self._replay.num_held_out >= min(_MIN_HELD_OUT_RECORDS, self._config.held_out_records)

    def _attempt_to_publish(self) -> None:
        self._pace.steps_at_gate = self._steps
        self._student.refresh_vocab(self._counts.counts_V)
        decision = self._publisher.attempt(
            self._data.held_out(),
            self._data.newest(NUM_RECORDS),
            num_records=self._replay.num_held_out,
            training_step=self._steps,
            stream_position=self._intake.last_position,
            between=self._yield_to_serving,
            demanded=self.demands.publishes,
        )
        self.demands.met()
        if decision is not None:
            self._follow(decision)
        self.checkpoint()

    def _follow(self, decision: GateDecision) -> None:
        self._pace.after(decision)
        if decision.published:
            self._drift.passed_gate()
        if decision.goes_back:
            self._update = self._new_update()
        elif decision.worse:  # the publisher has reset the candidate to the serving version
            self._update = self._new_update()
            _log.info("training goes on from version %d, at %g of its rate", self._publisher.serving, self._pace.rate)

    def _yield_to_serving(self) -> None:
        """Between two batches of a step: wait while the engine is busy, but at most `_LONGEST_YIELD_S`."""
        deadline_s = self._clock() + _LONGEST_YIELD_S
        with self._training_time.halted():
            while not self._has_time() and self._clock() < deadline_s and not self._stop.is_set():
                self._stop.wait(_IDLE_S / 5)

    def _has_time(self) -> bool:
        return self._may_train() or self.demands.trains_now

    def _new_update(self) -> TrainingStep:
        return new_training_step(self._config, self._student)

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must be of to be loaded: the target, and the drafter's kind and configuration."""
        identity = {"target_id": self._target_id, "kind": self._student.kind, "config": self._student.config}
        # Compared after a round trip through JSON, which turns numeric keys into strings and tuples into lists.
        as_read: dict[str, Any] = json.loads(json.dumps(identity, default=str))
        return as_read

    def _optimizer_identity(self) -> list[Any]:
        return [self._config.optimizer, self._config.optimizer_options]

    def _progress(self) -> dict[str, Any]:
        return {
            "identity": self._identity(),
            "optimizer": self._optimizer_identity(),
            "serving": self._publisher.serving,
            "steps": self._steps,
            "update_steps": self._update.steps,
            "trained_tokens": self._trained_tokens,
            "budget_tokens": self._budget.left_tokens,
            "loss": self._loss,
            **self._pace.state(),
            "gate": self._publisher.figures,
            "replay": self._replay.state(),
            "drift": self._drift.state(),
            "unacked": self._intake.unacked,
            "last_position": self._intake.last_position,
        }

    def _resume_from(self, checkpoint: Checkpoint) -> None:
        tensors, progress = checkpoint.tensors, checkpoint.progress
        state = {n.removeprefix(_STUDENT): tensor for n, tensor in tensors.items() if n.startswith(_STUDENT)}
        try:
            if progress["identity"] != self._identity():
                raise WeightsRefusedError("it belongs to another target or drafter")
            self._student.load_state(state)
        except WeightsRefusedError as error:
            _log.warning("the checkpoint is ignored, training starts from the published weights: %s", error)
            return
        if progress["optimizer"] == self._optimizer_identity():
            self._update.optimizer.load_state_dict(dict(checkpoint.optimizer))
            self._update.steps = progress["update_steps"]
        self._publisher.serving, self._publisher.figures = progress["serving"], progress["gate"]
        self._steps = progress["steps"]
        self._trained_tokens, self._loss = progress["trained_tokens"], progress["loss"]
        self._pace.restore(progress)
        self._budget.left_tokens = progress.get("budget_tokens", 0.0)
        self._counts.counts_V = tensors[_COUNTS]
        self._replay.restore(progress["replay"], checkpoint.records)
        self._drift.restore(progress.get("drift", {}))
        self._num_saved = self._replay.num_seen
        self._intake.unacked, self._intake.last_position = list(progress["unacked"]), progress["last_position"]
        self._intake.mark_checkpointed()
        _log.info("training goes on from the checkpoint of step %d", self._steps)

    def _report(self, state: TrainerState) -> TrainerStatus:
        problems = [self._problem]
        if self._intake.problem:
            problems.append(f"the outcome stream is away, training on what is remembered: {self._intake.problem}")
        if self._update.skipped:
            problems.append(f"{self._update.skipped} training steps were skipped: their loss was not finite")
        return TrainerStatus(
            state=state,
            steps=self._steps,
            trained_tokens=self._trained_tokens,
            training_s=self._training_time.total_s,
            loss=self._loss,
            learning_rate=self._pace.rate * self._update.learning_rate,
            worth=self._pace.worth,
            replay_records=self._replay.num_train,
            replay_bytes=self._replay.size_bytes,
            held_out_records=self._replay.num_held_out,
            published_version=self._publisher.serving,
            gate=dict(self._publisher.figures),
            stream_lag=self._intake.lag,
            drift=self._drift.status(),
            message="; ".join(problem for problem in problems if problem),
        )
