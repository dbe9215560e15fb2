"""A drafter that has learnt other traffic goes back to what it was, where that is better for what comes now."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from osd.records.outcome import Outcome
from osd.records.version import WeightManifest
from tests.kit.trainer_bench import Bench
from tests.kit.trainer_fakes import feature_student, learnable_outcome, make_outcome
from trainer.examples.batches import make_batches
from trainer.examples.examples import make_examples
from trainer.gate.gate import measure
from trainer.gate.origin import NUM_RECORDS
from trainer.students.student import Student


def _reversed(number: int) -> Outcome:
    """Tokens follow one another in the opposite direction of `learnable_outcome`'s."""
    ids = [(number - step) % 12 for step in range(10)]
    return make_outcome(f"back-{number}", prompt_ids=[*ids[:3], 12 + number % 8], output_ids=ids[3:])


def _length(student: Student) -> float:
    """Acceptance length on the traffic that the shipped drafter knows."""
    outcomes = map(learnable_outcome, range(8))
    examples = [e for o in outcomes for e in make_examples(o, student.alignment, max_predicting=64)]
    return measure(student, make_batches(examples, 512)).length


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights of a drafter that has learnt `learnable_outcome`'s traffic."""
    school = Bench(tmp_path_factory.mktemp("school"), outcomes=64)
    school.run(60)
    assert _length(school.student) > 2.2
    return dict(school.student.state())


def _shipped(state: dict[str, torch.Tensor]) -> Student:
    student = feature_student()
    student.load_state(state)
    return student


def _latest(bench: Bench) -> WeightManifest:
    latest = bench.store.latest()
    assert latest is not None
    return latest


def _after_other_traffic(folder: Path, shipped: dict[str, torch.Tensor]) -> Bench:
    bench = Bench(folder, student=_shipped(shipped), outcomes=0, gate_every_steps=5)
    for number in range(80):
        bench.source.put(_reversed(number))
    bench.run(60)
    assert _latest(bench).number > 1 and _length(bench.student) < 1.8, "it has forgotten"
    return bench


def test_what_it_knew_serves_again_when_its_traffic_comes(tmp_path: Path, shipped: dict[str, torch.Tensor]) -> None:
    bench = _after_other_traffic(tmp_path, shipped)
    decided = len(bench.events)
    for number in range(8 * NUM_RECORDS):
        bench.source.put(learnable_outcome(1000 + number))
    while not (decisions := [one for one in bench.events[decided:] if one.kind in ("publish", "refuse")]):
        bench.run(1)
    [event] = decisions
    assert event.kind == "publish" and "the drafter that training began with" in event.message
    manifest, state = bench.store.load(_latest(bench).number)
    assert all(tensor.equal(shipped[name]) for name, tensor in state.items())
    assert manifest.parent is not None and not manifest.is_origin
    served = _shipped(dict(state))
    assert _length(served) > 2.2
    bench.run(40)
    assert not [one for one in bench.events if "cannot" in one.message]


def test_nothing_changes_while_what_was_learnt_is_better(tmp_path: Path, shipped: dict[str, torch.Tensor]) -> None:
    bench = _after_other_traffic(tmp_path, shipped)
    for number in range(200, 280):
        bench.source.put(_reversed(number))
    bench.run(60)
    assert not [one for one in bench.events if "began with" in one.message]
