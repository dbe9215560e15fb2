"""Under a constraint an answer follows the target's distribution of the allowed tokens, renormalised at each position.

With speculation and without, by the reference and by a CPU's compiled verdict (`conftest.py`: float32 and bfloat16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from osd.machine.arrays import tensor
from osd.ports.constraint import RowConstraint
from osd.records.proposal import Proposal
from osd.records.rules import AcceptRule
from osd.verify.constrain import cut_to_constraints, drawn_again
from tests.kit.constraints import NoThirds, allowed_after
from tests.kit.taking_turns import take_turns
from tests.statistical.adversary import CertainDrafter
from tests.statistical.emission import ALARM, acceptance, emit, engine_with, fair_drafter, p_values
from tests.statistical.exact import CASES, Exact, enumerate_outputs

_SAMPLES = 1000


def _allowed(outputs_ND: Tensor) -> Tensor:
    last_N = outputs_ND[:, -1].numpy() if outputs_ND.shape[1] else np.zeros(len(outputs_ND), np.int64)
    return torch.from_numpy(allowed_after(last_N))


@pytest.fixture(scope="module")
def constrained(model: Any) -> dict[str, Exact]:
    return {name: enumerate_outputs(model, prompt, params, _allowed) for name, (params, prompt) in CASES.items()}


@pytest.mark.parametrize("lengths", [(0,), (3, 1, 3, 0, 2)])
def test_a_constraint_is_kept_and_changes_nothing_else(
    model: Any, constrained: dict[str, Exact], rule: AcceptRule, lengths: Sequence[int]
) -> None:
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    figures = p_values(emit(engine, lengths=lengths, samples=_SAMPLES, constraint=NoThirds), constrained)
    assert min(figures.values()) > ALARM, figures
    if any(lengths):
        assert acceptance(engine) > 0.1


def test_a_constraint_with_two_drafters(
    model: Any, exact: dict[str, Exact], constrained: dict[str, Exact], rule: AcceptRule
) -> None:
    """Neither knows of the constraint; one draws nothing."""
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target), lambda target: CertainDrafter(exact))
    figures = p_values(emit(take_turns(engine), lengths=(3,), samples=_SAMPLES, constraint=NoThirds), constrained)
    assert min(figures.values()) > ALARM, figures


def test_drafters_that_know_nothing_of_the_constraint(
    model: Any,
    constrained: dict[str, Exact],
    rule: AcceptRule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nothing can be drawn again, a drawn token that is forbidden is verified, and rejected."""
    monkeypatch.setattr("osd.engine.round.drawn_again", lambda proposal, *_: proposal)
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    figures = p_values(emit(engine, lengths=(3,), samples=_SAMPLES, constraint=NoThirds), constrained)
    assert min(figures.values()) > ALARM, figures


def test_a_misstated_distribution_of_what_is_drawn_again_is_noticed(
    model: Any, constrained: dict[str, Exact], rule: AcceptRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if forbidden tokens could still be drawn, so that allowed ones were less likely than they are."""

    def misstated(proposal: Proposal, *others: Any) -> Proposal:
        again, before = drawn_again(proposal, *others), proposal.draft_probs_BKV
        if again.draft_probs_BKV is None or before is None:
            return again
        width = again.draft_probs_BKV.shape[1]
        return replace(again, draft_probs_BKV=tensor(before)[:, :width].contiguous().numpy())

    monkeypatch.setattr("osd.engine.round.drawn_again", misstated)
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    figures = p_values(emit(engine, lengths=(3,), samples=400, constraint=NoThirds), constrained)
    assert min(figures.values()) < ALARM, figures


class Deaf(NoThirds):
    """Broken: what is proposed does not change what is allowed after it."""

    def allowed(self, proposed: Sequence[int]) -> NDArray[np.uint32]:
        return np.repeat(super().allowed(()), len(proposed) + 1, axis=0)


def test_a_constraint_that_overhears_the_proposal_is_noticed(
    model: Any, constrained: dict[str, Exact], rule: AcceptRule
) -> None:
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    figures = p_values(emit(engine, lengths=(3,), samples=400, constraint=Deaf), constrained)
    assert min(figures.values()) < ALARM, figures


def test_leaving_out_a_drawn_token_that_is_forbidden_is_noticed(
    model: Any, constrained: dict[str, Exact], rule: AcceptRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for rows that decode greedily: the next token would come from the target's distribution, not the residual."""

    def cut(proposal: Proposal, constraints: Sequence[RowConstraint | None], is_greedy_B: Sequence[bool]) -> Any:
        return cut_to_constraints(proposal, constraints, [True] * len(is_greedy_B))

    monkeypatch.setattr("osd.engine.round.drawn_again", lambda proposal, *_: proposal)
    monkeypatch.setattr("osd.engine.round.cut_to_constraints", cut)
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    samples = _SAMPLES if model.dtype == torch.float32 else 2 * _SAMPLES
    figures = p_values(emit(engine, lengths=(3,), samples=samples, constraint=NoThirds), constrained)
    assert min(figures.values()) < ALARM, figures
