"""A killed trainer goes on from its checkpoint: exactly, counting every outcome once, or from the published weights."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
import torch

from osd.records.outcome import Round
from tests.kit.trainer_bench import Bench
from tests.kit.trainer_fakes import feature_student, learnable_outcome, make_outcome
from trainer.loop.checkpoint import CheckpointFolder


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


@pytest.mark.parametrize("optimizer", ["AdamP", "RAdam", "Lookahead", "Muon", "SGD"])
def test_every_optimizer_resumes(tmp_path: Path, optimizer: str) -> None:
    bench = Bench(tmp_path, optimizer=optimizer, gate_every_steps=1000)
    bench.run(3)
    bench.trainer.checkpoint()
    bench.run(2)
    expected = bench.student.state()
    bench.start()
    bench.run(2)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in bench.student.state().items())


def test_a_checkpoint_does_not_grow_by_what_a_flood_has_displaced(tmp_path: Path) -> None:
    """A rare domain's record stays in the replay, while thousands of another come and go."""
    bench = Bench(tmp_path, outcomes=0, replay_bytes=1 << 16)
    bench.source.put(make_outcome("rare", domain="rare"))
    for number in range(400):
        bench.source.put(make_outcome(f"q-{number}", output_ids=(4, number % 24, number // 24), domain="flood"))
        if number % 20 == 0:
            bench.run(1)
            bench.trainer.checkpoint()
    bench.run(1)
    bench.trainer.checkpoint()
    status = bench.trainer.status()
    kept = status.replay_records + status.held_out_records
    saved = CheckpointFolder(tmp_path).load()
    assert saved is not None and kept < 100
    assert "rare" in {outcome.request_id for _, outcome in saved.records}
    assert kept <= len(saved.records) <= 2 * kept + 80
    bench.start()
    bench.run(1)
    again = bench.trainer.status()
    assert again.replay_records + again.held_out_records == kept


def test_a_restarted_trainer_notices_drift_from_what_was_normal_before(tmp_path: Path) -> None:
    bench, chance = Bench(tmp_path, outcomes=0, gate_every_steps=1000), random.Random(0)

    def serve(rate: float, num: int, first: int) -> None:
        for number in range(first, first + num):
            rounds = tuple(Round(1, 4, int(chance.random() < rate), "feature") for _ in range(20))
            bench.source.put(msgspec.structs.replace(learnable_outcome(number), rounds=rounds))
        bench.run(5)

    serve(0.6, 150, first=0)
    bench.trainer.checkpoint()
    before = bench.trainer.status().drift
    assert before["default"].state == "stable"
    bench.start()
    bench.run(1)
    assert bench.trainer.status().drift == before
    serve(0.3, 60, first=150)
    drifts = [event for event in bench.events if event.kind == "drift"]
    assert {event.message.split(" from ")[0] for event in drifts} == {
        "acceptance fell",
        "acceptance of domain 'default' fell",
    }
    assert all(0.55 < event.data["before"] < 0.65 for event in drifts)
