"""What is published is blended with the drafter that training began with, so that less of what it knew is forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from osd.records.outcome import Outcome
from tests.kit.trainer_bench import Bench
from tests.kit.trainer_fakes import FakeStore, Silent, feature_student, learnable_outcome, make_outcome
from trainer.batches import Batch, make_batches
from trainer.blend import blend, undo_blend
from trainer.examples import make_examples
from trainer.feature_student import FeatureStudent
from trainer.gate import GateDecision, measure
from trainer.looks import Evidence
from trainer.publisher import Publisher

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


def _close(one: State, other: State) -> None:
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)


def _middle(one: State, other: State) -> State:
    return {name: (one[name] + other[name]) / 2 if one[name].is_floating_point() else one[name] for name in one}


def _attempt(publisher: Publisher) -> GateDecision:
    decision = publisher.attempt(Evidence([{"": _KNOWN}]), training_step=9, stream_position="", between=lambda: None)
    assert decision is not None
    return decision


def _published_first(note: str) -> tuple[FakeStore, State]:
    store, first = FakeStore(), feature_student()
    store.publish(first.state(), kind="feature", config=first.config, parent=None, note=note)
    return store, first.state()


def test_a_blend_can_be_undone() -> None:
    student, first = feature_student(), feature_student()
    with torch.no_grad():
        for number, parameter in enumerate(student.parameters()):
            parameter.add_(0.1 * (number + 1))
    before = student.state()
    blend(student, first, 0.25)
    assert not torch.equal(student.state()["fuse.weight"], before["fuse.weight"])
    undo_blend(student, first, 0.25)
    _close(student.state(), before)


def test_half_of_the_way_is_published_and_training_goes_on_from_all_of_it(taught: State) -> None:
    store, first = _published_first("shipped")
    student = feature_student()
    publisher = Publisher(store, student, 0.0, Silent(), first_share=0.5)
    publisher.follow()
    student.load_state(taught)
    assert _attempt(publisher).published
    _close(store.load(2)[1], _middle(taught, first))
    assert store.load(2)[0].gate["first_share"] == 0.5
    assert all(torch.equal(tensor, taught[name]) for name, tensor in student.state().items())

    restarted = feature_student()
    Publisher(store, restarted, 0.0, Silent(), first_share=0.5).follow()
    _close(restarted.state(), taught)

    student.load_state(first)  # now a candidate is worse than what serves, and is undone
    assert _attempt(publisher).worse
    _close(student.state(), taught)


@pytest.mark.parametrize(("note", "share"), [("untrained", 0.5), ("shipped", 0.0)])
def test_a_first_version_that_knows_nothing_or_is_not_wanted_is_left_out(
    taught: State, note: str, share: float
) -> None:
    store, _ = _published_first(note)
    student = feature_student()
    publisher = Publisher(store, student, 0.0, Silent(), first_share=share)
    publisher.follow()
    student.load_state(taught)
    assert _attempt(publisher).published
    _close(store.load(2)[1], taught)
    assert store.load(2)[0].gate["first_share"] == 0.0


def test_a_drafter_that_an_operator_put_there_since_is_taken_as_it_is(taught: State) -> None:
    store, first = _published_first("shipped")
    publisher = Publisher(store, student := feature_student(), 0.0, Silent(), first_share=0.5)
    publisher.follow()
    student.load_state(taught)
    _attempt(publisher)
    store.publish(taught, kind="feature", config={}, parent=None, note="imported")
    assert publisher.follow()
    assert all(torch.equal(tensor, taught[name]) for name, tensor in student.state().items())
    store.roll_back(to=2, reason="")  # a blend with another drafter than the newest that was not trained here
    assert publisher.follow()
    _close(student.state(), _middle(taught, first))


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
