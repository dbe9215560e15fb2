"""How a candidate is compared with the version that serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.trainer_bench import Bench
from tests.kit.trainer_fakes import FakeStore, Silent, feature_student, learnable_outcome
from trainer.domains.branch_store import BranchStore
from trainer.examples.batches import Batch, make_batches
from trainer.examples.examples import ExampleKey, make_examples
from trainer.gate.gate import measure
from trainer.gate.origin import Origin
from trainer.gate.publisher import Publisher
from trainer.losses.acceptance import ChainSums
from trainer.students.feature_student import FeatureStudent


def _examples(numbers: range) -> list[Batch]:
    alignment = feature_student().alignment
    outcomes = map(learnable_outcome, numbers)
    return make_batches([e for o in outcomes for e in make_examples(o, alignment, max_predicting=64)], 512)


@pytest.fixture
def num_measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each pass that measures."""
    acceptance, found = FeatureStudent.acceptance, list[int]()

    def counting(self: FeatureStudent, batch: Batch) -> ChainSums:
        found.append(len(batch.keys))
        return acceptance(self, batch)

    monkeypatch.setattr(FeatureStudent, "acceptance", counting)
    return found


def test_what_was_measured_is_not_measured_again(num_measured: list[int]) -> None:
    student, known = feature_student(), dict[ExampleKey, ChainSums]()
    measure(student, _examples(range(6)), known=known)
    assert sum(num_measured) == 6
    again = measure(student, _examples(range(9)), known=known)
    assert sum(num_measured) == 9
    fresh = measure(student, _examples(range(9)))
    for sums, expected in zip(again.sums, fresh.sums, strict=True):
        assert sums.tolist() == expected.tolist()


def test_the_serving_version_is_measured_on_new_records_only(
    tmp_path: Path, num_measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Origin, "beats", lambda *args, **kwargs: None)  # it is measured as well, see test_origin.py
    bench = Bench(tmp_path, gate_every_steps=8, outcomes=16)
    held_out, publishes = [], 0
    for decision in range(1, 7):
        num_measured.clear()
        bench.run(8)
        held_out.append(bench.trainer.status().held_out_records)
        new = held_out[-1] if decision == 1 else held_out[-1] - held_out[-2]
        assert sum(num_measured) == held_out[-1] + new, "the candidate on all, the serving version on new ones"
        publishes += bench.kinds().count("publish") > publishes
        for number in range(16 + 4 * decision, 20 + 4 * decision):
            bench.source.put(learnable_outcome(number))
    assert publishes and bench.kinds().count("refuse"), "both kinds of decision were among them"
    assert held_out[-1] > held_out[0]


def test_the_figures_are_those_of_a_fresh_measurement(tmp_path: Path) -> None:
    bench = Bench(tmp_path, gate_every_steps=5)
    for _ in range(4):
        bench.run(5)
        gate = bench.trainer.status().gate
        version = bench.trainer.status().published_version - int(gate["published"])
        student = feature_student()
        student.load_state(bench.store.load(version)[1])
        batches = [batch for own in bench.trainer._data.held_out().values() for batch in own]
        assert gate["serving_length"] == pytest.approx(measure(student, batches).length)


def test_a_domain_s_candidate_is_compared_with_the_base_drafter_as_it_is_by_then(tmp_path: Path) -> None:
    base, untrained = FakeStore(), feature_student()
    base.publish(untrained.state(), kind="feature", config=untrained.config, parent=None)
    bench = Bench(tmp_path, outcomes=64)
    bench.run(60)
    taught = bench.student.state()
    student = feature_student()
    publisher = Publisher(BranchStore(FakeStore(), base, lambda: None), student, 0.0, Silent())
    publisher.follow()
    student.load_state(taught)
    batches = _examples(range(8))

    def serving_length() -> float:
        decision = publisher.attempt(
            {"": batches}, num_records=8, training_step=1, stream_position="", between=lambda: None
        )
        assert decision is not None
        assert decision.published == (base.latest() == base.versions[1][0])
        return decision.figures["serving_length"]

    base.publish(taught, kind="feature", config=untrained.config, parent=1)
    assert serving_length() == pytest.approx(measure(student, batches).length)
    base.roll_back(to=1, reason="")
    assert not publisher.follow(), "its own training goes on"
    assert serving_length() == pytest.approx(measure(untrained, batches).length)
