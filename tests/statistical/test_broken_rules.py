"""Broken accept rules fail the test of `test_lossless.py`: they come out below 1e-10.

In float32 the rules of `osd.verify.token_rule` and `osd.verify.block_rule` are broken, in bfloat16 a CPU's compiled
verdict (`osd.kernels.cpu.backend.logits`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from osd.kernels.cpu.backend.logits import CpuLogits
from osd.machine.arrays import tensor
from osd.records.rules import AcceptRule
from osd.verify.block_rule import reject_blockwise
from osd.verify.logits import SampledRows
from osd.verify.shaping import draw
from osd.verify.token_rule import reject_tokenwise
from tests.kit.engine_kit import VOCAB_TOKENS
from tests.statistical.adversary import CertainDrafter
from tests.statistical.emission import ALARM, emit, engine_with, fair_drafter, p_values
from tests.statistical.exact import Exact

_judge = CpuLogits.judge
_REJECT: dict[AcceptRule, Callable[..., tuple[Tensor, Tensor]]] = {"token": reject_tokenwise, "block": reject_blockwise}


def recovered_from_target(
    rule: AcceptRule,
    target_probs_BQV: Tensor,
    draft_probs_BKV: Tensor | None,
    proposed_BK: Tensor,
    lengths_B: Tensor,
    uniform_BQ: Tensor,
) -> tuple[Tensor, Tensor]:
    """The token after a rejection is drawn from the target, and not from the residual."""
    num_accepted_B, _ = _REJECT[rule](target_probs_BQV, draft_probs_BKV, proposed_BK, lengths_B, uniform_BQ)
    rows_B = torch.arange(len(lengths_B))
    return num_accepted_B, draw(target_probs_BQV[rows_B, num_accepted_B], uniform_BQ[rows_B, lengths_B])


def bonus_from_previous(
    rule: AcceptRule,
    target_probs_BQV: Tensor,
    draft_probs_BKV: Tensor | None,
    proposed_BK: Tensor,
    lengths_B: Tensor,
    uniform_BQ: Tensor,
) -> tuple[Tensor, Tensor]:
    """The token after a proposal that was accepted whole is drawn from the target one position too early."""
    rows_B = torch.arange(len(lengths_B))
    shifted_BQV = target_probs_BQV.clone()
    shifted_BQV[rows_B, lengths_B] = target_probs_BQV[rows_B, (lengths_B - 1).clamp(min=0)]
    return _REJECT[rule](shifted_BQV, draft_probs_BKV, proposed_BK, lengths_B, uniform_BQ)


def misstated_draft(
    rule: AcceptRule,
    target_probs_BQV: Tensor,
    draft_probs_BKV: Tensor | None,
    proposed_BK: Tensor,
    lengths_B: Tensor,
    uniform_BQ: Tensor,
) -> tuple[Tensor, Tensor]:
    """`draft_probs` are flatter than what the proposals were drawn from."""
    flat_BKV = None if draft_probs_BKV is None else draft_probs_BKV.sqrt()  # None: nothing is proposed
    return _REJECT[rule](target_probs_BQV, flat_BKV, proposed_BK, lengths_B, uniform_BQ)


def certain_as_drawn(
    rule: AcceptRule,
    target_probs_BQV: Tensor,
    draft_probs_BKV: Tensor | None,
    proposed_BK: Tensor,
    lengths_B: Tensor,
    uniform_BQ: Tensor,
) -> tuple[Tensor, Tensor]:
    """Tokens that were not drawn are taken for draws from the target, and so always accepted."""
    assert draft_probs_BKV is None
    same_BKV = target_probs_BQV[:, : proposed_BK.shape[1]]
    return _REJECT[rule](target_probs_BQV, same_BKV, proposed_BK, lengths_B, uniform_BQ)


def compiled_certain_as_drawn(logits: CpuLogits, sampled: SampledRows) -> Any:
    """The same of the compiled verdict: a uniform distribution, which gives each less than the target does."""
    proposal = sampled.proposal
    if proposal is not None:
        assert proposal.draft_probs_BKV is None
        flat_BKV = np.full((*proposal.token_ids_BK.shape, VOCAB_TOKENS), 1 / VOCAB_TOKENS, np.float32)
        proposal = replace(proposal, draft_probs_BKV=flat_BKV)
    return _judge(logits, sampled._replace(proposal=proposal))


def compiled_recovered_from_target(logits: CpuLogits, sampled: SampledRows) -> Any:
    """The same of the compiled verdict."""
    return _with_bonus_at(_judge(logits, sampled)[:, 0].tolist(), logits, sampled)


def compiled_bonus_from_previous(logits: CpuLogits, sampled: SampledRows) -> Any:
    """The same of the compiled verdict."""
    found_S2, lengths = _judge(logits, sampled), sampled.lengths
    is_whole_S = found_S2[:, 0] == np.array(lengths)
    early_S2 = _with_bonus_at([max(length - 1, 0) for length in lengths], logits, sampled)
    found_S2[is_whole_S, 1] = early_S2[is_whole_S, 1]
    return found_S2


def _with_bonus_at(kept_S: list[int], logits: CpuLogits, sampled: SampledRows) -> Any:
    """Keeps the first tokens of each row's proposal as though they were all of it, so that the target's own follows."""
    draws = [
        [1e-7] * kept + [uniforms[length]]
        for kept, length, uniforms in zip(kept_S, sampled.lengths, sampled.uniform_SQ, strict=True)
    ]
    width = max(map(len, draws))
    padded = [own + [0.0] * (width - len(own)) for own in draws]
    return _judge(logits, sampled._replace(lengths=kept_S, uniform_SQ=padded))


def compiled_misstated_draft(logits: CpuLogits, sampled: SampledRows) -> Any:
    """The same of the compiled verdict."""
    proposal = sampled.proposal
    if proposal is not None and proposal.draft_probs_BKV is not None:
        proposal = replace(proposal, draft_probs_BKV=tensor(proposal.draft_probs_BKV).sqrt().numpy())
    return _judge(logits, sampled._replace(proposal=proposal))


_BROKEN_RULES = [
    (recovered_from_target, compiled_recovered_from_target, (3,)),
    (bonus_from_previous, compiled_bonus_from_previous, (1, 2)),
    (misstated_draft, compiled_misstated_draft, (3,)),
]
"""What is put in the place of the tensors' verdict, and of the compiled one; speculation lengths."""


def residual_of_drawn(
    target_probs_BV: Tensor, draft_probs_BKV: Tensor | None, proposed_BK: Tensor, position_B: Tensor
) -> Tensor:
    """The rest after a token that was not drawn is what the target gives, as though nothing had been rejected."""
    assert draft_probs_BKV is None
    return target_probs_BV


@pytest.mark.parametrize("is_residual_broken", [False, True])
def test_a_broken_rule_for_tokens_that_were_not_drawn_is_noticed(
    model: Any, exact: dict[str, Exact], rule: AcceptRule, monkeypatch: pytest.MonkeyPatch, is_residual_broken: bool
) -> None:
    if model.dtype == torch.bfloat16:
        broken = compiled_recovered_from_target if is_residual_broken else compiled_certain_as_drawn
        monkeypatch.setattr(CpuLogits, "judge", broken)
    elif is_residual_broken:
        monkeypatch.setattr(f"osd.verify.{rule}_rule.residual", residual_of_drawn)
    else:
        monkeypatch.setattr(f"osd.kernels.reference.logits.{_REJECT[rule].__name__}", partial(certain_as_drawn, rule))
    engine = engine_with(model, rule, lambda target: CertainDrafter(exact))
    figures = p_values(emit(engine, lengths=(3,)), exact)
    assert max(figures.values()) < ALARM, figures


@pytest.mark.parametrize(("broken", "broken_compiled", "lengths"), _BROKEN_RULES)
def test_a_broken_rule_is_noticed(
    model: Any,
    exact: dict[str, Exact],
    rule: AcceptRule,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[..., Any],
    broken_compiled: Callable[..., Any],
    lengths: Sequence[int],
) -> None:
    """Also: the verdict that was replaced is the one in use, or the sound one would pass."""
    if model.dtype == torch.bfloat16:
        monkeypatch.setattr(CpuLogits, "judge", broken_compiled)
    else:
        monkeypatch.setattr(f"osd.kernels.reference.logits.{_REJECT[rule].__name__}", partial(broken, rule))
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    figures = p_values(emit(engine, lengths=lengths), exact)
    assert max(figures.values()) < ALARM, figures
