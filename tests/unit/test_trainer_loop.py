"""The loop: reads, trains, gates, publishes, acknowledges, yields, and goes on after everything that breaks."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from osd.types import Event
from tests.trainer_fakes import (
    FakeSource,
    FakeStore,
    feature_student,
    learnable_outcome,
    make_outcome,
    model_student,
    trainer_config,
)
from trainer.loop import Trainer
from trainer.replay import Replay


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Bench:
    """A trainer with everything around it."""

    def __init__(self, folder: Path, *, student: Any = None, outcomes: int = 30, **config: Any) -> None:
        self.source, self.store, self.clock = FakeSource(), FakeStore(), Clock()
        self.events: list[Event] = []
        self.may_train = True
        self.folder, self.config = folder, config
        for number in range(outcomes):
            self.source.put(learnable_outcome(number))
        first = student or feature_student()
        self.store.publish(first.state(), kind=first.kind, config=first.config, parent=None, note="untrained")
        self.trainer = self.start(student)

    def start(self, student: Any = None) -> Trainer:
        """A new process on the same folder, stream and store."""
        self.source.new_reader()
        self.student = student or feature_student()
        self.trainer = Trainer(
            trainer_config(**self.config),
            self.student,
            self.source,
            self.store,
            self.folder,
            target_id="tiny",
            may_train=lambda: self.may_train,
            on_event=self.events.append,
            checkpoint_every_s=60.0,
            clock=self.clock,
        )
        return self.trainer

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.trainer.run_once()

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@pytest.mark.parametrize("make_student", [feature_student, model_student])
def test_it_learns_and_publishes_what_beats_the_serving_version(tmp_path: Path, make_student: Any) -> None:
    bench = Bench(tmp_path, student=make_student())
    bench.run(40)
    status = bench.trainer.status()
    latest = bench.store.latest()
    assert latest is not None and latest.number > 1 and latest.number == status.published_version
    assert latest.parent == latest.number - 1 and latest.training_step > 0 and latest.kind == bench.student.kind
    assert latest.gate["candidate"] >= latest.gate["serving"] + latest.gate["margin"]
    assert latest.gate["candidate"] > 0.5 and latest.gate["depth_1"] == latest.gate["candidate"]
    assert latest.stream_position == "29-0"
    assert bench.kinds().count("publish") == latest.number - 1
    assert status.state == "training" and status.steps == 40 and status.trained_tokens > 0
    assert status.loss is not None and status.stream_lag == 0
    assert status.replay_records + status.held_out_records == 30


def test_a_candidate_that_is_no_better_is_refused_with_both_figures(tmp_path: Path) -> None:
    bench = Bench(tmp_path, gate_margin=0.0, learning_rate=1e-9, gate_every_steps=3)
    bench.config["gate_margin"] = 0.9
    bench.start()
    bench.run(3)
    latest = bench.store.latest()
    assert latest is not None and latest.number == 1
    (event,) = [event for event in bench.events if event.kind == "refuse"]
    assert event.data["margin"] == 0.9 and event.data["candidate"] < event.data["serving"] + 0.9
    assert f"{event.data['candidate']:.4f}" in event.message and f"{event.data['serving']:.4f}" in event.message
    assert bench.trainer.status().gate["published"] == 0.0


def test_too_few_held_out_records_decide_nothing(tmp_path: Path) -> None:
    replay = Replay(1 << 20, 0.25, 64, 0)
    bench = Bench(tmp_path, outcomes=0, gate_every_steps=2)
    trained = [number for number in range(40) if not replay.is_held_out(f"q-{number}")]
    for number in trained[:10]:
        bench.source.put(learnable_outcome(number))
    bench.run(8)
    assert "publish" not in bench.kinds() and "refuse" not in bench.kinds()
    for number in set(range(40)) - set(trained):
        bench.source.put(learnable_outcome(number))
    bench.run(1)
    assert {"publish", "refuse"} & set(bench.kinds())


def test_a_killed_trainer_goes_on_exactly_and_counts_every_outcome_once(tmp_path: Path) -> None:
    """Twin runs: one uninterrupted, one killed after a checkpoint with more outcomes read since."""
    whole, killed = Bench(tmp_path / "a", gate_every_steps=1000), Bench(tmp_path / "b", gate_every_steps=1000)
    for bench in (whole, killed):
        bench.run(5)
        bench.trainer.checkpoint()
        for number in range(30, 36):
            bench.source.put(learnable_outcome(number))
    assert len(killed.source.acked) == 30
    killed.run(3)  # reads six more and trains on them, but no checkpoint contains that
    assert len(killed.source.acked) == 30
    killed.start()
    assert killed.trainer.status().steps == 5
    for bench in (whole, killed):
        bench.run(4)
        assert bench.trainer.status().steps == 9
        bench.trainer.checkpoint()
        assert sorted(bench.source.acked) == sorted(bench.source.entries)
        status = bench.trainer.status()
        assert status.replay_records + status.held_out_records == 36
    assert whole.trainer.status().trained_tokens == killed.trainer.status().trained_tokens
    for name, tensor in whole.student.state().items():
        assert torch.equal(tensor, killed.student.state()[name]), name


def test_a_kill_between_checkpoint_and_acknowledgement_counts_nothing_twice(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(3)
    bench.source.down = True
    bench.trainer.checkpoint()
    assert not bench.source.acked
    bench.source.down = False
    bench.start()
    bench.run(2)
    assert sorted(bench.source.acked) == sorted(bench.source.entries)
    status = bench.trainer.status()
    assert status.replay_records + status.held_out_records == 30


def test_nothing_is_acknowledged_before_a_checkpoint_contains_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, gate_every_steps=1000)
    bench.run(5)
    assert not bench.source.acked
    bench.clock.now_s += 61
    bench.run(1)
    assert len(bench.source.acked) == 30


def test_a_torn_checkpoint_starts_from_the_published_weights(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(12)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    bench.start()
    latest = bench.store.latest()
    assert latest is not None
    bench.run(1)
    assert bench.trainer.status().steps == 0 and bench.trainer.status().published_version == latest.number
    name = "fuse.weight"
    assert torch.equal(bench.student.state()[name], bench.store.load(latest.number)[1][name])


def test_a_checkpoint_of_another_drafter_or_target_is_foreign(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(3)
    bench.trainer.checkpoint()
    bench.start(feature_student(window_tokens=5))  # the same shapes
    assert bench.trainer.status().steps == 0


def test_another_optimizer_keeps_the_weights_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(3)
    bench.trainer.checkpoint()
    weights = bench.student.state()
    bench.config["optimizer"] = "Lamb"
    bench.start()
    assert bench.trainer.status().steps == 3
    assert all(torch.equal(tensor, weights[name]) for name, tensor in bench.student.state().items())
    bench.run(2)


@pytest.mark.parametrize("optimizer", ["AdamP", "RAdam", "Lookahead", "SGD"])
def test_every_optimizer_resumes(tmp_path: Path, optimizer: str) -> None:
    bench = Bench(tmp_path, optimizer=optimizer, gate_every_steps=1000)
    bench.run(3)
    bench.trainer.checkpoint()
    bench.run(2)
    expected = bench.student.state()
    bench.start()
    bench.run(2)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in bench.student.state().items())


def test_a_step_that_is_not_finite_is_skipped_and_poisons_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    bench.run(2)
    before = bench.student.state()
    poison = [True]
    loss_terms = bench.student.loss_terms

    def poisoned(batch: Any) -> Any:
        terms = loss_terms(batch)
        return terms._replace(losses_N=terms.losses_N * float("nan")) if poison[0] else terms

    monkeypatch.setattr(bench.student, "loss_terms", poisoned)
    bench.run(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bench.student.state().items())
    assert bench.trainer.status().steps == 2 and "1 training steps were skipped" in bench.trainer.status().message
    poison[0] = False
    bench.run(1)
    assert bench.trainer.status().steps == 3
    assert all(bool(tensor.isfinite().all()) for tensor in bench.student.state().values())


def test_pause_and_resume(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.trainer.pause()
    bench.trainer.pause()
    bench.run(2)
    status = bench.trainer.status()
    assert status.state == "paused" and status.steps == 0 and status.replay_records > 0
    bench.trainer.resume()
    bench.run(1)
    assert bench.trainer.status().state == "training" and bench.trainer.status().steps == 1
    assert bench.kinds() == ["pause", "resume"]


def test_it_yields_while_the_engine_is_busy_and_waits_for_data(tmp_path: Path) -> None:
    bench = Bench(tmp_path, outcomes=1)
    bench.run(1)
    assert bench.trainer.status().state == "waiting_for_data"
    for number in range(1, 20):
        bench.source.put(learnable_outcome(number))
    bench.may_train = False
    bench.run(1)
    assert bench.trainer.status().state == "yielding" and bench.trainer.status().steps == 0
    bench.may_train = True
    bench.run(1)
    assert bench.trainer.status().state == "training"


def test_a_foreign_version_replaces_the_weights_and_momentum(tmp_path: Path) -> None:
    bench = Bench(tmp_path, gate_every_steps=1000, warmup_steps=5)
    bench.run(8)
    assert bench.trainer.status().learning_rate == pytest.approx(5e-3)
    published = feature_student().state()
    published["fuse.weight"] = published["fuse.weight"] + 0.125
    bench.store.publish(published, kind="feature", config={}, parent=1, note="by hand")
    bench.trainer.pause()
    bench.run(1)
    assert torch.equal(bench.student.state()["fuse.weight"], published["fuse.weight"])
    status = bench.trainer.status()
    assert status.published_version == 2 and status.learning_rate == pytest.approx(5e-3 / 6)
    assert "restart" in bench.kinds()


def test_a_roll_back_of_its_own_version_is_followed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.run(10)
    latest = bench.store.latest()
    assert latest is not None and latest.number == 2
    bench.store.roll_back(reason="worse")
    bench.trainer.pause()
    bench.run(1)
    assert bench.trainer.status().published_version == 1
    assert torch.equal(bench.student.state()["fuse.weight"], bench.store.load(1)[1]["fuse.weight"])


def test_a_version_that_does_not_fit_is_reported_once_and_training_goes_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, gate_every_steps=1000)
    bench.run(2)
    bench.store.publish({"other": torch.zeros(1)}, kind="model", config={}, parent=None)
    bench.run(3)
    assert bench.kinds() == ["error"] and bench.trainer.status().steps == 5


def test_a_stream_that_is_away_does_not_stop_training(tmp_path: Path) -> None:
    bench = Bench(tmp_path, gate_every_steps=1000)
    bench.run(1)
    bench.source.down = True
    bench.run(2)
    status = bench.trainer.status()
    assert status.steps == 3 and status.state == "training" and status.stream_lag is None
    assert "the outcome stream is away" in status.message
    bench.source.down = False
    bench.source.put(learnable_outcome(30))
    bench.run(1)
    assert bench.trainer.status().stream_lag is None  # it is not asked again at once
    bench.clock.now_s += 20
    bench.run(1)
    status = bench.trainer.status()
    assert status.message == "" and status.replay_records + status.held_out_records == 31


def test_a_full_disk_is_an_event_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    bench.store.full = True

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.checkpoint.save_file", full)
        bench.run(12)
    assert bench.kinds().count("error") == 2  # once for the version, once for the checkpoint
    assert bench.trainer.status().steps == 12 and not bench.source.acked
    assert "No space" in bench.trainer.status().message
    bench.store.full = False
    bench.run(10)
    assert "publish" in bench.kinds() and len(bench.source.acked) == 30
    assert bench.trainer.status().message == ""


def test_unfit_outcomes_are_passed_over_and_acknowledged(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.source.put(make_outcome("other-target", target_id="other"))
    bench.source.put(make_outcome("no-hidden", prompt_ids=(1,), output_ids=(2,), hidden_NH=torch.zeros(0, 16)))
    bench.source.put(learnable_outcome(3))  # known already
    bench.run(2)
    bench.trainer.checkpoint()
    assert len(bench.source.acked) == 33
    status = bench.trainer.status()
    assert status.replay_records + status.held_out_records == 30


def test_rejected_positions_only(tmp_path: Path) -> None:
    bench = Bench(tmp_path, positions="rejected")
    bench.run(2)
    assert 0 < bench.trainer.status().trained_tokens < 30


def test_refocus_resets_momentum_and_warms_up_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, warmup_steps=4, gate_every_steps=1000)
    bench.run(6)
    assert bench.trainer.status().learning_rate == pytest.approx(5e-3)
    bench.trainer.refocus()
    bench.run(1)
    assert bench.trainer.status().learning_rate == pytest.approx(5e-3 * 2 / 5)


def test_run_forever_runs_in_a_thread_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    stop = threading.Event()
    thread = threading.Thread(target=bench.trainer.run_forever, args=(stop,))
    thread.start()
    deadline_s = time.monotonic() + 20
    while bench.trainer.status().steps < 3 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    bench.trainer.pause()
    while bench.trainer.status().state != "paused" and time.monotonic() < deadline_s:
        time.sleep(0.01)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    status = bench.trainer.status()
    assert status.state == "stopped" and len(bench.source.acked) == 30
    bench.start()
    assert bench.trainer.status().steps == status.steps >= 3


def test_an_error_in_a_step_does_not_end_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.loop._PAUSE_AFTER_ERROR_S", 0.01)
    bench = Bench(tmp_path)
    fails = iter([True, True])
    loss_terms = bench.student.loss_terms

    def failing(batch: Any) -> Any:
        if next(fails, False):
            raise RuntimeError("out of memory")
        return loss_terms(batch)

    monkeypatch.setattr(bench.student, "loss_terms", failing)
    stop = threading.Event()
    thread = threading.Thread(target=bench.trainer.run_forever, args=(stop,))
    thread.start()
    deadline_s = time.monotonic() + 20
    while bench.trainer.status().steps < 1 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    stop.set()
    thread.join(10)
    assert bench.trainer.status().steps >= 1
    assert [e.message for e in bench.events if e.kind == "error"] == ["training failed: out of memory"]
