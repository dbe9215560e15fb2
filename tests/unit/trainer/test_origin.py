"""A drafter that has learnt other traffic goes back to what it was, where that is better for what comes now."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from osd.records.outcome import Outcome
from osd.records.version import WeightManifest
from tests.kit.trainer_bench import Bench
from tests.kit.trainer_fakes import FakeStore, Silent, feature_student, learnable_outcome, make_outcome
from trainer.batches import Batch, make_batches
from trainer.examples import make_examples
from trainer.gate import measure
from trainer.looks import Evidence
from trainer.origin import NUM_RECORDS
from trainer.publisher import Publisher
from trainer.student import Student


def _reversed(number: int) -> Outcome:
    """Tokens follow one another in the opposite direction of `learnable_outcome`'s."""
    ids = [(number - step) % 12 for step in range(10)]
    return make_outcome(f"back-{number}", prompt_ids=[*ids[:3], 12 + number % 8], output_ids=ids[3:])


def _batches(outcomes: Iterable[Outcome]) -> list[Batch]:
    alignment = feature_student().alignment
    return make_batches([e for o in outcomes for e in make_examples(o, alignment, max_predicting=64)], 512)


def _length(student: Student) -> float:
    """Acceptance length on the traffic that the shipped drafter knows."""
    return measure(student, _batches(map(learnable_outcome, range(8)))).length


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


@pytest.mark.parametrize("num_unseen", [8, 0])
def test_eight_queries_of_its_traffic_are_enough_whether_held_out_or_not(
    shipped: dict[str, torch.Tensor], num_unseen: int
) -> None:
    """The serving version was trained on none of them, and the held-out ones are of other traffic."""
    store, student = FakeStore(), feature_student()
    store.publish(shipped, kind="feature", config=student.config, parent=None)
    store.publish(student.state(), kind="feature", config=student.config, parent=1, training_step=5)
    publisher = Publisher(store, student, 0.0, Silent())
    publisher.follow()
    evidence = Evidence(
        [{"": _batches(map(_reversed, range(8)))}], (), _batches(map(learnable_outcome, range(num_unseen)))
    )
    decision = publisher.attempt(evidence, training_step=9, stream_position="", between=lambda: None)
    assert decision is not None and decision.goes_back == decision.published == bool(num_unseen)
    assert student.state()["fuse.weight"].equal(shipped["fuse.weight"]) == bool(num_unseen)


def test_what_the_serving_version_was_trained_on_is_no_evidence(tmp_path: Path) -> None:
    bench = Bench(tmp_path, outcomes=40, gate_every_steps=1000)
    bench.run(1)
    data = bench.trainer._data
    assert not data.evidence(NUM_RECORDS, since=40).unseen
    keys = {key.request_id for batch in data.evidence(NUM_RECORDS, since=37).unseen for key in batch.keys}
    assert keys == {"q-37", "q-38", "q-39"}
    keys = {key.request_id for batch in data.evidence(NUM_RECORDS, since=0).unseen for key in batch.keys}
    assert keys == {f"q-{number}" for number in range(32, 40)}
