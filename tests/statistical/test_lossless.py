"""With any drafter the engine's output follows exactly the target's distribution.

The first four emitted tokens (one from the prefill, three or more from rounds) are compared with the target's own joint
distribution (`exact.py`). Seeds are fixed, so a result is reproducible. `test_broken_rules.py` shows that the test
fails where it should.
"""

from __future__ import annotations

from typing import Any

import pytest

from osd.drafters.suffix.pool import AnswerPool
from osd.records.rules import AcceptRule
from tests.kit.eagle3_drafter import EAGLE3_LAYERS, eagle3_drafter
from tests.kit.engine_kit import feature_drafter, manifest_of, perturbed, swap, tiny_llama, weights_of
from tests.kit.taking_turns import take_turns
from tests.statistical.adversary import AdversarialDrafter, CertainDrafter
from tests.statistical.emission import (
    ALARM,
    SHARPNESS,
    acceptance,
    bad_drafter,
    emit,
    engine_with,
    fair_drafter,
    good_drafter,
    p_values,
)
from tests.statistical.exact import Exact

RAGGED = (3, 1, 3, 0, 2)
"""Speculation lengths of neighbouring requests."""


def test_a_good_drafter_changes_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    engine = engine_with(model, rule, lambda target: good_drafter(model, target))
    figures = p_values(emit(engine, lengths=(3,)), exact)
    assert min(figures.values()) > ALARM, figures
    assert acceptance(engine) > 0.5


def test_a_fair_drafter_changes_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    figures = p_values(emit(engine, lengths=RAGGED), exact)
    assert min(figures.values()) > ALARM, figures


def test_a_bad_drafter_changes_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    engine = engine_with(model, rule, bad_drafter)
    figures = p_values(emit(engine, lengths=RAGGED), exact)
    assert min(figures.values()) > ALARM, figures
    assert 0 < acceptance(engine) < 0.2


def test_an_adversarial_drafter_changes_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    engine = engine_with(model, rule, lambda target: AdversarialDrafter(exact))
    figures = p_values(emit(engine, lengths=RAGGED), exact)
    assert min(figures.values()) > ALARM, figures
    assert 0 < acceptance(engine) < 0.2


def test_tokens_that_were_not_drawn_change_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    """They come without a distribution, which is known to give each of them probability 1."""
    engine = engine_with(model, rule, lambda target: CertainDrafter(exact))
    figures = p_values(emit(engine, lengths=RAGGED), exact)
    assert min(figures.values()) > ALARM, figures
    assert 0.1 < acceptance(engine) < 0.9


def test_two_drafters_in_one_batch_change_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    """Of neighbouring rows one's tokens were drawn, the other's were not."""
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target), lambda target: CertainDrafter(exact))
    figures = p_values(emit(take_turns(engine), lengths=RAGGED), exact)
    assert min(figures.values()) > ALARM, figures
    assert {drafter.name for drafter in engine.counters.by_drafter} == {"model", "certain"}


def test_a_suffix_lookup_beside_a_drafter_changes_nothing(
    model: Any, exact: dict[str, Exact], rule: AcceptRule
) -> None:
    """It knows answers to the same prompts, and proposes for some rows of a batch."""
    pool = AnswerPool(1 << 16)
    for answers in emit(engine_with(model, rule), lengths=(0,), samples=100).values():
        for answer in answers:
            pool.add("default", answer)
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target), pool=pool)
    figures = p_values(emit(engine, lengths=RAGGED), exact)
    assert min(figures.values()) > ALARM, figures
    counts = engine.counters.by_drafter
    assert {drafter.name for drafter in counts} == {"model", "suffix"}
    assert min(own["accepted"] for own in counts.values()) > 100


def test_a_feature_drafter_with_a_reduced_vocabulary_changes_nothing(
    model: Any, exact: dict[str, Exact], rule: AcceptRule
) -> None:
    engine = engine_with(model, rule, lambda target: feature_drafter(target, vocab_tokens=16))
    figures = p_values(emit(engine, lengths=RAGGED), exact)
    assert min(figures.values()) > ALARM, figures


@pytest.mark.slow
def test_a_published_head_changes_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    engine = engine_with(model, rule, eagle3_drafter, hidden_layers=EAGLE3_LAYERS)
    figures = p_values(emit(engine, lengths=RAGGED), exact)
    assert min(figures.values()) > ALARM, figures


def test_hot_swaps_in_mid_request_change_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    other = tiny_llama(77, sharpness=SHARPNESS).to(model.dtype)
    versions = [weights_of(perturbed(model, 0.03)), weights_of(other)]
    engine = engine_with(model, rule, lambda target: good_drafter(model, target))

    def swap_between(step: int) -> None:
        swap(engine, manifest_of(step + 2), versions[step % 2])

    figures = p_values(emit(engine, lengths=(1, 3, 1, 0, 2), between=swap_between), exact)
    assert min(figures.values()) > ALARM, figures
    assert engine.counters.values["swaps_total"] > 100
