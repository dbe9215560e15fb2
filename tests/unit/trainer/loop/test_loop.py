"""The loop: reads, trains, gates, publishes, acknowledges, yields, and goes on after everything that breaks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from osd.io.folder import LocalFolder
from osd.records.outcome import Round
from tests.kit.trainer_bench import Bench
from tests.kit.trainer_fakes import feature_student, learnable_outcome, make_outcome, model_student
from tests.kit.waiting import wait_for
from trainer.replay.replay import Replay, is_held_out


@pytest.mark.parametrize("make_student", [feature_student, model_student])
def test_it_learns_and_publishes_what_beats_the_serving_version(tmp_path: Path, make_student: Any) -> None:
    bench = Bench(tmp_path, student=make_student())
    bench.run(40)
    status = bench.trainer.status()
    latest = bench.store.latest()
    assert latest is not None and latest.number > 1 and latest.number == status.published_version
    assert latest.parent == latest.number - 1 and latest.training_step > 0 and latest.kind == bench.student.kind
    assert latest.gate["gain_low"] > latest.gate["margin"] == 0.0
    assert latest.gate["length"] > latest.gate["serving_length"]
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
    bench.run(4)
    latest = bench.store.latest()
    assert latest is not None and latest.number == 1
    (event,) = [event for event in bench.events if event.kind == "refuse"]
    assert event.data["margin"] == 0.9 and event.data["gain_low"] < 0.9
    assert f"{event.data['length']:.3f}" in event.message and f"{event.data['serving_length']:.3f}" in event.message
    assert bench.trainer.status().gate["published"] == 0.0


def test_a_drafter_that_knows_much_is_taught_with_smaller_steps(tmp_path: Path) -> None:
    """Steps that make it worse are undone and halved; what it learns with those that are left is published."""
    taught = Bench(tmp_path / "school")
    taught.run(60)
    bench = Bench(tmp_path / "work", student=taught.student, learning_rate=1.0, gate_every_steps=4, warmup_steps=0)
    rates = []
    for _ in range(12):
        bench.run(4)
        status = bench.trainer.status()
        rates.append(status.learning_rate)
        if status.gate["gain_high"] < 0:
            serving = bench.store.load(status.published_version)[1]
            assert all(torch.equal(tensor, serving[name]) for name, tensor in bench.student.state().items())
    assert rates[:3] == [0.5, 0.25, 0.125] and max(rates[3:]) > rates[2]
    assert "publish" in bench.kinds() and "restart" not in bench.kinds()
    assert bench.start().status().learning_rate == rates[-1]  # a restart remembers


def test_what_training_is_worth_follows_the_gate(tmp_path: Path) -> None:
    bench = Bench(tmp_path, gate_every_steps=2, gate_margin=100.0, held_out_records=3, outcomes=0)
    bench.run(1)
    assert bench.trainer.worth == 0.0, "there is nothing to train on"
    for number in range(30):
        bench.source.put(learnable_outcome(number))
    bench.run(1)
    assert bench.trainer.worth == 1.0
    worths = []
    for _ in range(6):
        bench.run(2)
        worths.append(bench.trainer.worth)
    assert worths == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 16, 1 / 16] or worths == [1.0, *worths[1:]]
    assert worths[-1] == 1 / 16 == bench.trainer.status().worth
    bench.config["gate_margin"] = 0.0
    assert bench.start().worth == 0.0, "nothing is known yet of a new process's traffic"
    bench.run(1)
    assert bench.trainer.worth == 1 / 16, "a restart remembers"
    bench.run(60)
    assert "publish" in bench.kinds()
    bench.trainer.pause()
    bench.run(1)
    assert bench.trainer.worth == 0.0


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


def test_training_is_proportional_to_the_traffic(tmp_path: Path) -> None:
    bench = Bench(tmp_path, passes=3.0, gate_every_steps=4)
    bench.run(60)
    status = bench.trainer.status()
    trained_on = [outcome for outcome in map(learnable_outcome, range(30)) if not is_held_out(outcome.request_id, 0.25)]
    num_tokens = sum(len(outcome.output_ids) for outcome in trained_on)
    a_step = status.trained_tokens / status.steps
    assert status.state == "waiting_for_data" and bench.trainer.worth == 0.0
    assert 3 * num_tokens <= status.trained_tokens <= 3 * num_tokens + 2 * a_step
    num_decisions = len([kind for kind in bench.kinds() if kind in ("publish", "refuse")])
    assert num_decisions == status.steps // 4 > 0, "also at the end, if there were steps enough"

    bench.trainer.checkpoint()
    bench.start()
    bench.run(5)
    assert bench.trainer.status().steps == status.steps, "a restart earns nothing"
    for number in range(30, 40):
        bench.source.put(learnable_outcome(number))
    bench.run(60)
    assert bench.trainer.status().steps > status.steps
    steps = bench.trainer.status().steps
    bench.trainer.demands.train_now()
    bench.run(1)
    assert bench.trainer.status().steps == steps + 1, "an operator's demand comes first"


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
    bench = Bench(tmp_path, gate_every_steps=20)
    bench.run(20)
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
    bench = Bench(tmp_path, gate_every_steps=20)
    bench.store.full = True

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "write", full)
        bench.run(22)
    assert bench.kinds().count("error") == 2  # once for the version, once for the checkpoint
    assert bench.trainer.status().steps == 22 and not bench.source.acked
    assert "No space" in bench.trainer.status().message
    bench.store.full = False
    bench.run(18)
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


def test_drift_drops_momentum_warms_up_again_and_prefers_new_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a version passes the gate."""
    focused: list[int] = []
    monkeypatch.setattr(Replay, "focus_on_present", lambda replay: focused.append(replay.num_seen))
    bench = Bench(tmp_path, outcomes=0, warmup_steps=4, gate_every_steps=60, learning_rate=0.05)

    def put(numbers: range, accepted: int) -> None:
        for number in numbers:
            rounds = (Round(1, 4, 1), Round(1, 4, 0)) * 5 + (Round(1, 4, accepted),) * 10
            bench.source.put(msgspec.structs.replace(learnable_outcome(number), rounds=rounds))

    put(range(60), accepted=2)
    bench.run(30)
    assert bench.trainer.status().learning_rate == pytest.approx(0.05) and not focused
    assert {one.state for one in bench.trainer.status().drift.values()} == {"stable"}
    put(range(60, 90), accepted=0)
    bench.run(1)
    [*_, event] = [event for event in bench.events if event.kind == "drift"]
    assert event.message.startswith("acceptance fell from 0.75 to 0.25 over ")
    assert event.data["before"] == pytest.approx(0.75) and event.data["recent"] == 0.25
    assert 1 <= event.data["queries"] < 30
    assert bench.trainer.status().learning_rate == pytest.approx(0.05 * 2 / 5)
    # Of eight contents eight records each are kept.
    assert focused == [64] and bench.trainer.worth == 1.0
    window = bench.trainer.status().drift["*"]
    assert window.state == "drift" and window.before == pytest.approx(0.75)
    bench.run(29)
    assert bench.kinds()[-1] == "publish"
    assert {one.state for one in bench.trainer.status().drift.values()} == {"stable"}


def test_run_forever_runs_in_a_thread_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    stop = threading.Event()
    thread = threading.Thread(target=bench.trainer.run_forever, args=(stop,))
    thread.start()
    wait_for(lambda: bench.trainer.status().steps >= 3, "three steps")
    bench.trainer.pause()
    wait_for(lambda: bench.trainer.status().state == "paused", "the pause")
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    status = bench.trainer.status()
    assert status.state == "stopped" and len(bench.source.acked) == 30
    bench.start()
    assert bench.trainer.status().steps == status.steps >= 3


def test_an_error_in_a_step_does_not_end_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    wait_for(lambda: bench.trainer.status().steps >= 1, "a step after the two that fail")
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert [e.message for e in bench.events if e.kind == "error"] == ["training failed: out of memory"]
