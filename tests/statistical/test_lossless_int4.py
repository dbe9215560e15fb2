"""With weights of four bits, too, the engine's output follows exactly the target's distribution.

That target is the model whose layers' weights are rounded; the drafters are copies of the one before.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import nn

from osd.kernels.cpu.kernels import kernels
from osd.kernels.cpu.products.codes import rounded
from osd.records.rules import AcceptRule
from tests.kit.engine_kit import manifest_of, perturbed, swap, tiny_llama, weights_of
from tests.statistical.emission import (
    ALARM,
    SHARPNESS,
    acceptance,
    emit,
    engine_with,
    fair_drafter,
    good_drafter,
    p_values,
)
from tests.statistical.exact import CASES, Exact, enumerate_outputs

pytestmark = pytest.mark.skipif(kernels() is None, reason="numba is not installed")


@pytest.fixture(scope="module")
def model() -> Any:
    """In bfloat16, before its weights are rounded."""
    return tiny_llama(6, sharpness=SHARPNESS, intermediate_size=64).bfloat16()


@pytest.fixture(scope="module")
def exact(model: Any) -> dict[str, Exact]:
    """By plain passes of the model whose layers' weights are rounded."""
    target = copy.deepcopy(model)
    for layer in target.model.layers:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(rounded(module.weight, 4))
    return {name: enumerate_outputs(target, prompt, params) for name, (params, prompt) in CASES.items()}


def test_a_fair_drafter_changes_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target), is_int4=True)
    figures = p_values(emit(engine, lengths=(3, 1, 3, 0, 2)), exact)
    assert min(figures.values()) > ALARM, figures
    assert acceptance(engine) > 0.1


def test_hot_swaps_in_mid_request_change_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    other = tiny_llama(77, sharpness=SHARPNESS, intermediate_size=64).bfloat16()
    versions = [weights_of(perturbed(model, 0.03)), weights_of(other)]
    engine = engine_with(model, rule, lambda target: good_drafter(model, target), is_int4=True)

    def swap_between(step: int) -> None:
        swap(engine, manifest_of(step + 2), versions[step % 2])

    figures = p_values(emit(engine, lengths=(1, 3, 1, 0, 2), between=swap_between), exact)
    assert min(figures.values()) > ALARM, figures


def test_weights_that_are_not_rounded_are_noticed(model: Any, exact: dict[str, Exact]) -> None:
    """Also: the test sees a difference as small as that of the rounding."""
    engine = engine_with(model, "token", lambda target: fair_drafter(model, target))
    figures = p_values(emit(engine, lengths=(3,), samples=1600), exact)
    assert max(figures.values()) < ALARM, figures
