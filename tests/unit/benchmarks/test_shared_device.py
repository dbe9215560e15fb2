"""The benchmark of a shared device: its load, its trainer's modes, and what it reports."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import training_process
from benchmarks.engine_load import Serving
from benchmarks.random_models import SHAPES
from benchmarks.shape_bench import feature_config
from benchmarks.shared_device import main
from benchmarks.training_process import Mode
from osd.config.trainer import TrainerConfig
from osd.fleet.spare import leaves_room
from osd.records.outcome_arrays import check_shapes
from tests.kit.waiting import wait_for
from tests.unit.benchmarks.test_shapes import make_bench, prompts_of

_CONFIG = TrainerConfig(device="cpu", gate_margin=100.0, batch_tokens=32, gate_every_steps=2, held_out_share=0.25)
_NET = feature_config(SHAPES["tiny"])


def test_queries_are_asked_one_by_one_or_as_they_arrive() -> None:
    bench, prompts = make_bench(1.0), prompts_of(3)
    bench.drafter.remember(prompts, bench.decode(prompts, 0).answers)
    serving = Serving(bench, prompts, 40)
    closed = serving.closed(0.05)
    assert closed.tpots_s and closed.elapsed_s >= 0.05 and closed.busy_s <= closed.elapsed_s
    late = serving.open([0.0, 0.0, 0.2], seconds=0.3)
    assert len(late.tpots_s) == 3 and late.elapsed_s >= 0.3 and late.busy_s < late.elapsed_s
    assert all(0 < tpot_s < late.elapsed_s for tpot_s in late.tpots_s)
    assert bench.engine.counters.values["accepted_total"] == bench.engine.counters.values["proposed_total"]


def test_made_up_outcomes_are_sound_and_come_once() -> None:
    source = training_process._MadeUp(_NET, 5, 7)
    first, rest = source.read(2, 0), source.read(1000, 0)
    assert len(first) == 2 and source.lag() == 0 and not source.read(2, 0)
    assert len({position for position, _ in first + rest}) == len(first + rest) > 8
    for _, outcome in first + rest:
        check_shapes(outcome)
        assert len(outcome.output_ids) == 7 and outcome.hidden


class Modes:
    """The value in which the trainer says which mode is in force: of what it said, one entry a turn of its loop."""

    def __init__(self) -> None:
        self.said = [-1]

    @property
    def value(self) -> int:
        return self.said[-1]

    @value.setter
    def value(self, mode: int) -> None:
        self.said.append(mode)


def test_the_trainer_trains_when_its_mode_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_CLIENT_PRIORITY", "1")  # else it would stay set after this test
    names = ("mode", "utilisation", "steps", "trained_tokens")
    modes = Modes()
    shared: Any = SimpleNamespace(mode_in_force=modes, **{name: SimpleNamespace(value=0) for name in names})
    config = _CONFIG.model_copy(update={"nice": 0})
    arguments = _NET, config, 6, 8, shared, tmp_path
    thread = threading.Thread(target=training_process._train, args=arguments, daemon=True)
    thread.start()

    def steps_in(mode: Mode, *, utilisation: float, at_least: int = 0) -> int:
        """How many steps it made in a mode: in so many turns of its loop, or until there are enough."""
        shared.utilisation.value, shared.mode.value = utilisation, mode
        wait_for(lambda: modes.value == mode, "the mode")
        begun, before = len(modes.said), shared.steps.value
        if at_least:
            wait_for(lambda: shared.steps.value - before >= at_least, "the trainer to train")
        else:
            wait_for(lambda: len(modes.said) > begun + 3, "the trainer to look four times")
        return int(shared.steps.value - before)

    try:
        assert steps_in(Mode.PAUSED, utilisation=0.0) == 0
        assert steps_in(Mode.ALWAYS, utilisation=1.0, at_least=3) >= 3  # past a gate
        assert steps_in(Mode.PAUSED, utilisation=0.0) == 0
        assert steps_in(Mode.YIELDING, utilisation=0.6) == 0
        assert steps_in(Mode.YIELDING, utilisation=0.4, at_least=1) >= 1
        assert shared.trained_tokens.value > 0 and any((tmp_path / "checkpoint").iterdir())
    finally:
        shared.mode.value = Mode.STOPPED
        thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("utilisation", "most", "is_left"), [(0.4, 0.5, True), (0.5, 0.5, False), (1.0, 1.0, True), (0.0, 0.0, False)]
)
def test_room_is_left_below_the_configured_share(utilisation: float, most: float, is_left: bool) -> None:
    assert leaves_room(utilisation, TrainerConfig(max_utilisation=most)) == is_left


def test_it_ends_with_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--shape tiny --seconds 0.2 --blocks 1 --slots 2 --length 2 --tokens 16 --context 6 --threads 1"
    main([*options.split(), "--device", "cpu", "--json"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "shared_device" and report["shape"] == "tiny" and report["queries_per_s"] > 0
    assert report["loads"].keys() == {"closed", "open"}
    for by_mode in report["loads"].values():
        assert by_mode.keys() == {"paused", "yielding", "always"}
        assert by_mode["paused"]["steps"] == 0 and by_mode["paused"]["tpot_p50_ratio"] == 1.0
        assert all(at["queries"] and at["tpot_p50_ms"] <= at["tpot_p95_ms"] for at in by_mode.values())
