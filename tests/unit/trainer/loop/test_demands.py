"""What an operator demands of the trainer: training now, publishing now, and domains that are left out."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from tests.kit.trainer_bench import Bench
from tests.kit.trainer_fakes import learnable_outcome


def test_train_now_trains_beside_a_busy_engine_until_the_gate_decides(tmp_path: Path) -> None:
    bench = Bench(tmp_path, gate_every_steps=3)
    bench.may_train = False
    bench.run(2)
    assert bench.trainer.status().steps == 0
    bench.trainer.demands.train_now()
    bench.run(6)
    status = bench.trainer.status()
    assert status.steps == 3 and "published" in status.gate
    assert status.state == "yielding"


def test_a_candidate_is_published_on_demand_with_the_figures_that_spoke_against_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, learning_rate=1e-9, gate_every_steps=1000, gate_margin=0.9)
    bench.run(2)
    bench.trainer.demands.publish()
    bench.run(2)
    latest = bench.store.latest()
    assert latest is not None and latest.number == 2
    assert latest.gate["demanded"] == 1.0 and latest.gate["gain_low"] < 0.9
    (told,) = (event for event in bench.events if event.kind == "publish")  # once
    assert "as an operator asked" in told.message and told.data["demanded"] == 1.0


def test_a_frozen_domain_is_not_learnt_from(tmp_path: Path) -> None:
    bench = Bench(tmp_path, outcomes=0, gate_every_steps=1000)
    for number in range(20):
        bench.source.put(msgspec.structs.replace(learnable_outcome(number), domain="code"))
    bench.trainer.demands.frozen = frozenset({"code"})
    before = {name: tensor.clone() for name, tensor in bench.student.state().items()}
    bench.run(5)
    assert bench.trainer.status().steps == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in bench.student.state().items())
    bench.trainer.demands.frozen = frozenset()
    bench.run(2)
    assert bench.trainer.status().steps == 2
