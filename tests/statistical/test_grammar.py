"""Under a grammar an answer follows the target's distribution of the allowed tokens, renormalised at each position.

As `test_constrained`, with a grammar in place of arithmetic: one letter of a few, then perhaps one of others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from osd.grammar.compiler import GrammarCompiler
from osd.grammar.row_grammar import RowGrammar
from osd.records.asked.constraint import ConstraintSpec
from osd.records.rules import AcceptRule
from tests.kit.engine_kit import VOCAB_TOKENS
from tests.kit.letters import letter_codec
from tests.statistical.emission import ALARM, acceptance, emit, engine_with, fair_drafter, p_values
from tests.statistical.exact import CASES, Exact, enumerate_outputs

_SAMPLES = 800
_GRAMMAR = ConstraintSpec(kind="regex", text="([a-l][m-w]?){30}x")
_FIRST, _SECOND = 12, 23
"""The numbers of tokens that may begin a pair, and that may follow: a to l, a to w."""


def _allowed(outputs_ND: Tensor) -> Tensor:
    begins_N = torch.ones(len(outputs_ND), dtype=torch.bool)
    if outputs_ND.shape[1]:
        begins_N = outputs_ND[:, -1] >= _FIRST
    return torch.arange(VOCAB_TOKENS) < torch.where(begins_N, _FIRST, _SECOND)[:, None]


@pytest.fixture(scope="module")
def by_grammar(model: Any) -> dict[str, Exact]:
    return {name: enumerate_outputs(model, prompt, params, _allowed) for name, (params, prompt) in CASES.items()}


@pytest.fixture(scope="module")
def new_row() -> Callable[[], RowGrammar]:
    compiler = GrammarCompiler(letter_codec(), {VOCAB_TOKENS - 1})
    return lambda: compiler.compile(_GRAMMAR)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(0,), (3, 1, 3, 0, 2)])
def test_a_grammar_is_kept_and_changes_nothing_else(
    model: Any,
    by_grammar: dict[str, Exact],
    rule: AcceptRule,
    lengths: Sequence[int],
    new_row: Callable[[], RowGrammar],
) -> None:
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    figures = p_values(emit(engine, lengths=lengths, samples=_SAMPLES, constraint=new_row), by_grammar)
    assert min(figures.values()) > ALARM, figures
    if any(lengths):
        assert acceptance(engine) > 0.1


class _NoWayBack(RowGrammar):
    """Broken: what was proposed stays in the grammar's state."""

    def allowed(self, proposed: Sequence[int]) -> NDArray[np.uint32]:
        masks = super().allowed(proposed)
        self._matcher.try_consume_tokens(list(proposed)[:1])
        return masks


class _StandsStill(RowGrammar):
    """Broken: committed tokens do not advance it."""

    def advance(self, tokens: Sequence[int]) -> None: ...

    def expected(self) -> Sequence[int]:
        return ()


@pytest.mark.parametrize("broken", [_NoWayBack, _StandsStill])
def test_a_state_that_is_not_that_of_the_committed_tokens_is_noticed(
    model: Any,
    by_grammar: dict[str, Exact],
    rule: AcceptRule,
    broken: type[RowGrammar],
    new_row: Callable[[], RowGrammar],
) -> None:
    def wrong_row() -> RowGrammar:
        row = new_row()
        return broken(row._matcher, VOCAB_TOKENS, {VOCAB_TOKENS - 1})

    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    with_error_as_end = emit(engine, lengths=(3,), samples=200, constraint=wrong_row)
    complete = {name: [one for one in outputs if len(one) == 4] for name, outputs in with_error_as_end.items()}
    assert any(len(complete[name]) < 200 for name in complete) or min(p_values(complete, by_grammar).values()) < ALARM
