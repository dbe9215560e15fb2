"""With any drafter the engine's output follows exactly the target's distribution.

The joint distribution of the first four emitted tokens (one from the prefill, three or more from rounds) is compared
with the exact one, which is enumerated through the plain model, by Pearson's chi-square test. Cells are taken in
lexicographic order and merged until each is expected at least `_MIN_EXPECTED` times; a token that the target cannot
emit fails at once. Seeds are fixed, so a result is reproducible; with other seeds a sound engine fails one case in
1 / `_ALARM` = 10,000. The broken rules at the end of the file must fail the very same test: they come out below 1e-10.

Everything runs by both accept rules, in float32, where `osd.rejection` and `osd.block_rejection` decide, and in
bfloat16, the type that is served, where a CPU's compiled verdict (`osd.models.compiled.judge`) does. In bfloat16 the
plain model's logits and the engine's are rounded differently, by up to 0.02 in a log-probability: too little to show in
this many samples, except where it decides which tokens top-p keeps. Outputs that pass through such a context are one
cell of the test, see `is_clear`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from osd.arrays import tensor
from osd.block_rejection import reject_blockwise
from osd.engine import Engine
from osd.models.compiled.verdicts import verdicts
from osd.models.target import Target
from osd.proposal import DraftBatch, Proposal
from osd.protocols import Drafter, SwapIn
from osd.rejection import reject_tokenwise
from osd.sampling import draw, uniforms
from osd.types import AcceptRule, Request, SamplingParams
from tests.engine_kit import (
    VOCAB_TOKENS,
    feature_drafter,
    make_engine,
    make_target,
    manifest_of,
    model_drafter,
    perturbed,
    swap,
    tiny_llama,
    weights_of,
)

_TOKENS = 4
_SLOTS = 32
_SAMPLES = 1600
_MUTANT_SAMPLES = 1000
_MIN_EXPECTED = 5.0
_ALARM = 1e-4
_SHARPNESS = 1.5
_ROUNDING = 0.02
"""More than bfloat16's rounding moves a probability, relatively, or a sum of them."""

_CASES = {
    "plain": (SamplingParams(temperature=1.0), (3, 1, 4)),
    "nucleus": (SamplingParams(temperature=0.8, top_p=0.9), (2, 7, 1, 8, 2)),
}
_RAGGED = (3, 1, 3, 0, 2)
"""Speculation lengths of neighbouring requests."""


# ---- the exact distribution ----------------------------------------------------------------------------------------


def shaped(logits_NV: Tensor, params: SamplingParams) -> Tensor:
    """Temperature and top-p in float64, written apart from osd.sampling."""
    probs_NV = torch.softmax(logits_NV.double() / params.temperature, dim=-1)
    order_NV = probs_NV.argsort(dim=-1, descending=True)
    sorted_NV = probs_NV.gather(1, order_NV)
    mass_before_NV = torch.cat((torch.zeros(len(sorted_NV), 1), sorted_NV.cumsum(dim=-1)[:, :-1]), dim=1)
    kept_NV = torch.zeros_like(probs_NV).scatter(1, order_NV, sorted_NV * (mass_before_NV < params.top_p))
    return kept_NV / kept_NV.sum(dim=-1, keepdim=True)


class Exact(NamedTuple):
    """By d = 0 .. _TOKENS - 1, of the contexts that consist of a prompt and each of the V^d outputs of d tokens:"""

    tables: list[Tensor]
    """the target's distribution of the next token, `[V^d, V]`;"""
    is_clear: list[Tensor]
    """see the function of that name, `[V^d]`."""


@torch.no_grad()
def enumerate_outputs(model: Any, prompt: Sequence[int], params: SamplingParams) -> Exact:
    """All outputs of a prompt, by plain passes of the model."""
    exact = Exact([], [])
    for depth in range(_TOKENS):
        places = VOCAB_TOKENS ** torch.arange(depth - 1, -1, -1)
        outputs = torch.arange(VOCAB_TOKENS**depth)[:, None] // places % VOCAB_TOKENS
        ids = torch.cat((torch.tensor(prompt).expand(len(outputs), -1), outputs), dim=1)
        logits_NV = model(input_ids=ids, use_cache=False).logits[:, -1]
        exact.tables.append(shaped(logits_NV, params))
        exact.is_clear.append(is_clear(logits_NV, params))
    return exact


def joint_probs(tables: list[Tensor]) -> Tensor:
    """P(first four tokens), `[V^4]` in lexicographic order."""
    joint = torch.ones(1, dtype=torch.float64)
    for table_NV in tables:
        joint = (joint[:, None] * table_NV).flatten()
    return joint


def is_clear(logits_NV: Tensor, params: SamplingParams) -> Tensor:
    """Contexts in which bfloat16's rounding cannot change what top-p keeps, `[N]`.

    No sum of probabilities is near `top_p`, and no token left out is nearly as likely as one that is kept.
    """
    if logits_NV.dtype == torch.float32 or params.top_p == 1.0:
        return torch.ones(len(logits_NV), dtype=torch.bool)
    probs_NV = torch.softmax(logits_NV.double() / params.temperature, dim=-1).sort(dim=-1, descending=True).values
    mass_NV = probs_NV.cumsum(dim=-1)
    is_far_N = ((mass_NV - params.top_p).abs() > _ROUNDING).all(dim=-1)
    last_N1 = (mass_NV < params.top_p).sum(dim=-1, keepdim=True).clamp(max=VOCAB_TOKENS - 2)
    is_apart_N1 = probs_NV.gather(1, last_N1 + 1) < (1 - 2 * _ROUNDING) * probs_NV.gather(1, last_N1)
    return is_far_N & is_apart_N1[:, 0]


def clear_outputs(contexts: list[Tensor]) -> Tensor:
    """Outputs of four tokens all of whose contexts are clear, `[V^4]`."""
    clear = torch.ones(1, dtype=torch.bool)
    for clear_N in contexts:
        clear = (clear & clear_N).repeat_interleave(VOCAB_TOKENS)
    return clear


def p_value(samples: Sequence[Sequence[int]], exact: Exact) -> float:
    """Pearson's chi-square test of emitted tokens against their exact joint distribution."""
    digits = torch.tensor(samples)
    cells = (digits * VOCAB_TOKENS ** torch.arange(_TOKENS - 1, -1, -1)).sum(dim=1)
    clear = clear_outputs(exact.is_clear)
    counts, joint = (
        torch.cat((all_of_them[clear], all_of_them[~clear].sum()[None]))
        for all_of_them in (torch.bincount(cells, minlength=len(clear)).double(), joint_probs(exact.tables))
    )
    if bool((counts[joint == 0] > 0).any()):
        return 0.0
    expected = joint * len(samples)
    merged: list[list[float]] = [[0.0, 0.0]]
    for count, expectation in zip(counts[joint > 0].tolist(), expected[joint > 0].tolist(), strict=True):
        if merged[-1][1] >= _MIN_EXPECTED:
            merged.append([0.0, 0.0])
        merged[-1][0] += count
        merged[-1][1] += expectation
    if merged[-1][1] < _MIN_EXPECTED:
        count, expectation = merged.pop()
        merged[-1][0] += count
        merged[-1][1] += expectation
    statistic = sum((count - expectation) ** 2 / expectation for count, expectation in merged)
    return float(chi2.sf(statistic, len(merged) - 1))


# ---- drafters ------------------------------------------------------------------------------------------------------


class AdversarialDrafter:
    """Offers what the target is least likely to emit, half of the rounds as a sure thing, half as a peaked draw."""

    kind = "adversarial"
    version = 1

    def __init__(self, exact: Mapping[str, Exact]) -> None:
        self._known = {
            params.temperature: (len(prompt), exact[name].tables) for name, (params, prompt) in _CASES.items()
        }
        self._rounds = 0

    def propose(self, batch: DraftBatch) -> Proposal:
        self._rounds += 1
        num_rows, num_steps = len(batch.lengths), max(batch.lengths)
        ids_BK = torch.zeros(num_rows, num_steps, dtype=torch.long)
        probs_BKV = torch.zeros(num_rows, num_steps, VOCAB_TOKENS)
        for row in range(num_rows):
            known = batch.tokens_SL[row, : batch.num_tokens[row]].tolist()
            for step in range(batch.lengths[row]):
                probs_V = self._draft(known, batch.params[row])
                choice = int(draw(probs_V[None], torch.tensor(uniforms(batch.generators[row], 1, 1))))
                ids_BK[row, step], probs_BKV[row, step] = choice, probs_V
                known.append(choice)
        return Proposal(
            token_ids_BK=ids_BK, lengths=batch.lengths, draft_probs_BKV=probs_BKV, drafter_version=self.version
        )

    def _draft(self, known: list[int], params: SamplingParams) -> Tensor:
        prompt_len, tables = self._known.get(params.temperature, (len(known), []))  # calibration is greedy
        output = known[prompt_len:]
        least = 0
        if len(output) < len(tables):
            cell = sum(token * VOCAB_TOKENS**place for place, token in enumerate(reversed(output)))
            # Of the tokens that the target may emit at all: these are kept now and then, and must be kept rightly.
            target_V = tables[len(output)][cell]
            least = int(target_V.where(target_V > 0, 2.0).argmin())
        peaked_V = torch.full((VOCAB_TOKENS,), 0.0 if self._rounds % 2 else 0.3 / VOCAB_TOKENS)
        peaked_V[least] += 1.0 - float(peaked_V.sum())
        return peaked_V

    def reset_row(self, row: int) -> None: ...

    def swap_rows(self, row: int, other: int) -> None: ...

    def state(self) -> dict[str, Tensor]:
        return {}

    def prepare(self, state: Mapping[str, Tensor], version: int) -> SwapIn:
        raise NotImplementedError


# ---- the test ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Any:
    return tiny_llama(6, sharpness=_SHARPNESS).to(getattr(torch, request.param))


@pytest.fixture(params=["token", "block"])
def rule(request: pytest.FixtureRequest) -> AcceptRule:
    found: AcceptRule = request.param
    return found


@pytest.fixture(scope="module")
def exact(model: Any) -> dict[str, Exact]:
    return {name: enumerate_outputs(model, prompt, params) for name, (params, prompt) in _CASES.items()}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def emit(
    engine: Engine,
    *,
    lengths: Sequence[int],
    samples: int = _SAMPLES,
    between: Callable[[int], None] = lambda step: None,
) -> dict[str, list[list[int]]]:
    """The first tokens of many requests, both cases mixed in every batch."""
    outputs: dict[str, list[int]] = {}
    for number in range(samples):
        for name, (params, prompt) in _CASES.items():
            engine.submit(
                Request(
                    request_id=f"{name}-{number}",
                    prompt_ids=prompt,
                    params=SamplingParams(
                        temperature=params.temperature, top_p=params.top_p, seed=number, max_tokens=_TOKENS + 1
                    ),
                    speculation_length=lengths[number % len(lengths)],
                )
            )
    step = 0
    while engine.has_work:
        between(step)
        for delta in engine.step():
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
        step += 1
    return {name: [outputs[f"{name}-{number}"][:_TOKENS] for number in range(samples)] for name in _CASES}


def engine_with(model: Any, rule: AcceptRule, make_drafter: Callable[[Target], Drafter]) -> Engine:
    target = make_target(copy.deepcopy(model), num_slots=_SLOTS, context_tokens=32)
    return make_engine(target, make_drafter(target), chunk_tokens=128, accept_rule=rule)


def p_values(outputs: dict[str, list[list[int]]], exact: dict[str, Exact]) -> dict[str, float]:
    return {name: p_value(samples, exact[name]) for name, samples in outputs.items()}


def acceptance(engine: Engine) -> float:
    return engine.counters.values["accepted_total"] / engine.counters.values["proposed_total"]


def good_drafter(model: Any, target: Target) -> Drafter:
    return model_drafter(perturbed(model, 0.03), target)


def fair_drafter(model: Any, target: Target) -> Drafter:
    """Right one time in three, where a wrong rule shows most."""
    return model_drafter(perturbed(model, 0.12), target)


def bad_drafter(target: Target) -> Drafter:
    return model_drafter(tiny_llama(77, sharpness=_SHARPNESS).to(target.lm.dtype), target)


def test_a_good_drafter_changes_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    engine = engine_with(model, rule, lambda target: good_drafter(model, target))
    figures = p_values(emit(engine, lengths=(3,)), exact)
    assert min(figures.values()) > _ALARM, figures
    assert acceptance(engine) > 0.5


def test_a_fair_drafter_changes_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    figures = p_values(emit(engine, lengths=_RAGGED), exact)
    assert min(figures.values()) > _ALARM, figures


def test_a_bad_drafter_changes_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    engine = engine_with(model, rule, bad_drafter)
    figures = p_values(emit(engine, lengths=_RAGGED), exact)
    assert min(figures.values()) > _ALARM, figures
    assert 0 < acceptance(engine) < 0.2


def test_an_adversarial_drafter_changes_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    engine = engine_with(model, rule, lambda target: AdversarialDrafter(exact))
    figures = p_values(emit(engine, lengths=_RAGGED), exact)
    assert min(figures.values()) > _ALARM, figures
    assert 0 < acceptance(engine) < 0.2


def test_a_feature_drafter_with_a_reduced_vocabulary_changes_nothing(
    model: Any, exact: dict[str, Exact], rule: AcceptRule
) -> None:
    engine = engine_with(model, rule, lambda target: feature_drafter(target, vocab_tokens=16))
    figures = p_values(emit(engine, lengths=_RAGGED), exact)
    assert min(figures.values()) > _ALARM, figures


def test_hot_swaps_in_mid_request_change_nothing(model: Any, exact: dict[str, Exact], rule: AcceptRule) -> None:
    other = tiny_llama(77, sharpness=_SHARPNESS).to(model.dtype)
    versions = [weights_of(perturbed(model, 0.03)), weights_of(other)]
    engine = engine_with(model, rule, lambda target: good_drafter(model, target))

    def swap_between(step: int) -> None:
        swap(engine, manifest_of(step + 2), versions[step % 2])

    figures = p_values(emit(engine, lengths=(1, 3, 1, 0, 2), between=swap_between), exact)
    assert min(figures.values()) > _ALARM, figures
    assert engine.counters.values["swaps_total"] > 100


# ---- the test can fail: broken rules, of the tensors' verdicts and of the compiled one -------------------------------

_REJECT: dict[AcceptRule, Callable[..., tuple[Tensor, Tensor]]] = {"token": reject_tokenwise, "block": reject_blockwise}


def recovered_from_target(
    rule: AcceptRule,
    target_probs_BQV: Tensor,
    draft_probs_BKV: Tensor,
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
    draft_probs_BKV: Tensor,
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
    draft_probs_BKV: Tensor,
    proposed_BK: Tensor,
    lengths_B: Tensor,
    uniform_BQ: Tensor,
) -> tuple[Tensor, Tensor]:
    """`draft_probs` are flatter than what the proposals were drawn from."""
    return _REJECT[rule](target_probs_BQV, draft_probs_BKV.sqrt(), proposed_BK, lengths_B, uniform_BQ)


def compiled_recovered_from_target(*case: Any, rule: AcceptRule) -> Any:
    """The same of the compiled verdict."""
    return _with_bonus_at(verdicts(*case, rule=rule)[:, 0].tolist(), *case, rule=rule)


def compiled_bonus_from_previous(*case: Any, rule: AcceptRule) -> Any:
    """The same of the compiled verdict."""
    found_S2, lengths = verdicts(*case, rule=rule), case[2]
    is_whole_S = found_S2[:, 0] == np.array(lengths)
    early_S2 = _with_bonus_at([max(length - 1, 0) for length in lengths], *case, rule=rule)
    found_S2[is_whole_S, 1] = early_S2[is_whole_S, 1]
    return found_S2


def _with_bonus_at(
    kept_S: list[int],
    logits: Any,
    sampled: Any,
    lengths: Any,
    proposal: Any,
    shapes: Any,
    uniform_SQ: Any,
    *,
    rule: AcceptRule,
) -> Any:
    """Keeps the first tokens of each row's proposal as though they were all of it, so that the target's own follows."""
    draws = [
        [1e-7] * kept + [uniforms[length]] for kept, length, uniforms in zip(kept_S, lengths, uniform_SQ, strict=True)
    ]
    width = max(map(len, draws))
    padded = [own + [0.0] * (width - len(own)) for own in draws]
    return verdicts(logits, sampled, kept_S, proposal, shapes, padded, rule=rule)


def compiled_misstated_draft(
    logits: Any, sampled: Any, lengths: Any, proposal: Any, shapes: Any, uniform_SQ: Any, *, rule: AcceptRule
) -> Any:
    """The same of the compiled verdict."""
    if proposal is not None and proposal.draft_probs_BKV is not None:
        proposal = replace(proposal, draft_probs_BKV=tensor(proposal.draft_probs_BKV).sqrt().numpy())
    return verdicts(logits, sampled, lengths, proposal, shapes, uniform_SQ, rule=rule)


_BROKEN_RULES = [
    (recovered_from_target, compiled_recovered_from_target, (3,)),
    (bonus_from_previous, compiled_bonus_from_previous, (1, 2)),
    (misstated_draft, compiled_misstated_draft, (3,)),
]
"""What is put in the place of the tensors' verdict, and of the compiled one; speculation lengths."""


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
        monkeypatch.setattr("osd.verify.verdicts", broken_compiled)
    else:
        monkeypatch.setattr(f"osd.verify.{_REJECT[rule].__name__}", partial(broken, rule))
    engine = engine_with(model, rule, lambda target: fair_drafter(model, target))
    figures = p_values(emit(engine, lengths=lengths, samples=_MUTANT_SAMPLES), exact)
    assert max(figures.values()) < _ALARM, figures
