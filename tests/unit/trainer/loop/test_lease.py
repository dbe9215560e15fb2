"""Without its lease a trainer reads, trains, saves and publishes nothing, and acknowledges nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.kit.trainer_bench import Bench
from tests.kit.trainer_fakes import trainer_config
from trainer.loop.loop import Trainer


@dataclass
class _Lease:
    fence: int = 3
    held: bool = True

    def is_held(self) -> bool:
        return self.held


def _bench(folder: Path, lease: _Lease) -> Bench:
    bench = Bench(folder, gate_every_steps=5)
    bench.trainer = Trainer(
        trainer_config(**bench.config),
        bench.student,
        bench.source,
        bench.store,
        folder,
        target_id="tiny",
        lease=lease,
        on_event=bench.events.append,
        checkpoint_every_s=1.0,
        clock=bench.clock,
    )
    return bench


def test_without_the_lease_nothing_is_done(tmp_path: Path) -> None:
    lease = _Lease(held=False)
    bench = _bench(tmp_path, lease)
    bench.run(8)
    bench.trainer.checkpoint()
    status = bench.trainer.status()
    assert (status.steps, status.replay_records, status.state) == (0, 0, "waiting_for_data")
    assert len(bench.store.versions) == 1 and list(tmp_path.iterdir()) == []
    lease.held = True
    bench.run(3)
    assert bench.trainer.status().steps > 0


def test_a_lease_that_is_lost_stops_training_before_it_is_saved_or_published(tmp_path: Path) -> None:
    lease = _Lease()
    bench = _bench(tmp_path, lease)
    bench.run(4)
    steps = bench.trainer.status().steps
    assert steps > 0
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    lease.held = False
    bench.clock.now_s += 100.0
    bench.run(20)
    bench.trainer.checkpoint()
    assert bench.trainer.status().steps == steps and bench.trainer.status().state == "yielding"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert len(bench.store.versions) == 1


def test_what_is_published_carries_the_fence(tmp_path: Path) -> None:
    bench = _bench(tmp_path, _Lease(fence=7))
    for _ in range(60):
        bench.run(5)
        if len(bench.store.versions) > 1:
            break
    newest = max(bench.store.versions)
    assert newest > 1 and bench.store.versions[newest][0].fence == 7
