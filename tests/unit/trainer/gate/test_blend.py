"""What is published is blended with the drafter that training began with, so that less of what it knew is forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from osd.io.weight_store import FileWeightStore
from osd.records.outcome import Outcome
from tests.kit.trainer_bench import Bench
from tests.kit.trainer_fakes import FakeStore, Silent, feature_student, learnable_outcome, make_outcome
from trainer.examples.batches import Batch, make_batches
from trainer.examples.examples import make_examples
from trainer.gate.blend import blend
from trainer.gate.gate import measure
from trainer.gate.publisher import Publisher
from trainer.students.feature_student import FeatureStudent

State = dict[str, Tensor]


def _student(state: State) -> FeatureStudent:
    student = feature_student()
    student.load_state(state)
    return student


def _batches(outcomes: list[Outcome]) -> list[Batch]:
    alignment = feature_student().alignment
    return make_batches([e for o in outcomes for e in make_examples(o, alignment, max_predicting=64)], 512)


_KNOWN = _batches([learnable_outcome(number) for number in range(8)])


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> State:
    """Weights that have learnt `learnable_outcome`'s traffic."""
    school = Bench(tmp_path_factory.mktemp("school"), outcomes=64)
    school.run(60)
    return dict(school.student.state())


def _weighted(one: State, other: State, share: float) -> State:
    """`share` of the other's weights; the vocabulary is the first one's."""
    return {
        name: (1 - share) * tensor + share * other[name] if tensor.is_floating_point() else tensor
        for name, tensor in one.items()
    }


def _published(taught: State, note: str, share: float) -> tuple[FakeStore, State, FeatureStudent]:
    """A store where a student of these weights was published after a first version, the first weights, the student."""
    store, first = FakeStore(), feature_student()
    store.publish(first.state(), kind="feature", config=first.config, parent=None, note=note)
    student = feature_student()
    publisher = Publisher(store, student, 0.0, Silent(), first_share=share)
    publisher.follow()
    student.load_state(taught)
    decision = publisher.attempt({"": _KNOWN}, num_records=8, training_step=9, stream_position="", between=lambda: None)
    assert decision is not None and decision.published
    return store, first.state(), student


def test_a_blend_changes_neither_of_the_two(taught: State) -> None:
    student, first = _student(taught), feature_student()
    before = first.state()
    torch.testing.assert_close(blend(student, first, 0.25).state(), _weighted(taught, before, 0.25))
    assert all(torch.equal(tensor, taught[name]) for name, tensor in student.state().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.state().items())


def test_a_blend_is_published_and_training_goes_on_from_what_was_blended(taught: State) -> None:
    store, first, student = _published(taught, "shipped", 0.25)
    torch.testing.assert_close(store.load(2)[1], _weighted(taught, first, 0.25))
    assert all(torch.equal(tensor, taught[name]) for name, tensor in student.state().items())


@pytest.mark.parametrize(("note", "share"), [("untrained", 0.5), ("shipped", 0.0)])
def test_a_first_version_that_knows_nothing_or_is_not_wanted_is_left_out(
    taught: State, note: str, share: float
) -> None:
    store, _, _ = _published(taught, note, share)
    assert all(torch.equal(tensor, taught[name]) for name, tensor in store.load(2)[1].items())


def test_a_drafter_that_was_rolled_back_takes_no_part(tmp_path: Path, taught: State) -> None:
    """Not even in what is published later, under a higher number than the one that was rolled back."""
    store, first = FileWeightStore(tmp_path), feature_student()
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in first.state().items()}
    for note, state in (("shipped", first.state()), ("imported", other)):
        store.publish(state, kind="feature", config=first.config, parent=None, note=note)
    store.roll_back(reason="worse")
    student = feature_student()
    publisher = Publisher(store, student, 0.0, Silent(), first_share=0.25)
    publisher.follow()
    student.load_state(taught)
    for number in (3, 4):
        decision = publisher.attempt(
            {"": _KNOWN}, num_records=8, training_step=number, stream_position="", between=lambda: None, demanded=True
        )
        assert decision is not None and publisher.serving == number
        torch.testing.assert_close(store.load(number)[1], _weighted(taught, first.state(), 0.25))


def _reversed(number: int) -> Outcome:
    """Tokens follow one another in the opposite direction of `learnable_outcome`'s."""
    ids = [(number - step) % 12 for step in range(10)]
    return make_outcome(f"back-{number}", prompt_ids=[*ids[:3], 12 + number % 8], output_ids=ids[3:])


def _after_other_traffic(folder: Path, taught: State, share: float) -> FeatureStudent:
    """What serves a drafter that knew one kind of traffic and has learnt another since."""
    bench = Bench(
        folder, student=_student(taught), note="shipped", outcomes=0, gate_every_steps=5, first_version_share=share
    )
    for number in range(80):
        bench.source.put(_reversed(number))
    bench.run(40)
    latest = bench.store.latest()
    assert latest is not None and latest.number > 1
    return _student(dict(bench.store.load(latest.number)[1]))


def test_less_is_forgotten_of_what_the_first_version_knew(tmp_path: Path, taught: State) -> None:
    new = _batches([_reversed(number) for number in range(100, 108)])
    whole, blended = (_after_other_traffic(tmp_path / str(share), taught, share) for share in (0.0, 0.5))
    assert measure(blended, _KNOWN).length > measure(whole, _KNOWN).length + 0.1
    assert measure(blended, new).length > measure(_student(taught), new).length + 0.1, "and the new is learnt"
