"""Block verification gives exactly the target's distribution: by enumeration over a tiny vocabulary, without chance.

The conditionals differ by context, as a model's do. Proposals are summed over with their draft probabilities; a block's
probability of passing is found on the rule itself, by a search for the uniform draw up to which it passes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from osd.verify.block_rule import reject_blockwise
from osd.verify.token_rule import reject_tokenwise

_VOCAB = 3
_MOST = 3
"""Tokens proposed."""
_ALMOST_ONE = 1.0 - 1e-15
_POINTS, _SEARCHES = 4096, 4
"""Points of a search for a threshold, and how many ever closer searches there are: together 48 bits."""
Tables = list[Tensor]
"""By the number of tokens d before: the conditionals after each, `[V] * (d + 1)`."""


def _tables(seed: int, zeros: float = 0.0) -> Tables:
    generator = torch.Generator().manual_seed(seed)
    tables = []
    for depth in range(_MOST + 1):
        shape = (_VOCAB,) * (depth + 1)
        weights = torch.rand(shape, generator=generator, dtype=torch.float64) ** 3 + 1e-3
        weights = weights.where(torch.rand(shape, generator=generator) >= zeros, 0.0)
        weights[..., 0] += 1e-3
        tables.append(weights / weights.sum(dim=-1, keepdim=True))
    return tables


def _along(tables: Tables, tokens: tuple[int, ...], num: int) -> Tensor:
    """The conditionals at the first `num` positions of an output, `[num, V]`."""
    return torch.stack([tables[depth][tokens[:depth]] for depth in range(num)])


def _verdicts(
    target_QV: Tensor, draft_KV: Tensor, proposed: tuple[int, ...], uniform_NQ: Tensor
) -> tuple[Tensor, Tensor]:
    """(number of accepted tokens `[N]`, the token after them `[N]`) of one proposal with N rows of draws."""
    num = len(uniform_NQ)
    return reject_blockwise(
        target_QV.expand(num, -1, -1),
        draft_KV.expand(num, -1, -1),
        torch.tensor(proposed, dtype=torch.long).expand(num, -1),
        torch.full((num,), len(proposed)),
        uniform_NQ,
    )


def _verdict(target_QV: Tensor, draft_KV: Tensor, proposed: tuple[int, ...], uniforms: list[float]) -> tuple[int, int]:
    num_accepted_B, next_B = _verdicts(target_QV, draft_KV, proposed, torch.tensor([uniforms], dtype=torch.float64))
    return int(num_accepted_B), int(next_B)


def _threshold(passes: Callable[[Tensor], Tensor]) -> float:
    """The share of draws in (0, 1) that pass, which are those below it: found among ever closer points."""
    low, step = 0.0, 1.0
    for _ in range(_SEARCHES):
        step /= _POINTS
        passed_N = passes(low + step * torch.arange(1, _POINTS, dtype=torch.float64))
        num_passed = int(passed_N.sum())
        assert bool(passed_N[:num_passed].all())
        low += step * num_passed
    return low


def _chances(target_QV: Tensor, draft_KV: Tensor, proposed: tuple[int, ...]) -> list[float]:
    """P(i tokens are accepted) for i = 0 .. K, from the tests' thresholds: the longest block that passes is kept."""
    length = len(proposed)
    chances, all_longer_fail = [], 1.0
    for block in range(length, 0, -1):

        def passes(uniform_N: Tensor, block: int = block) -> Tensor:
            uniform_NQ = torch.full((len(uniform_N), length + 1), _ALMOST_ONE, dtype=torch.float64)
            uniform_NQ[:, block - 1] = uniform_N
            return _verdicts(target_QV, draft_KV, proposed, uniform_NQ)[0] >= block

        share = _threshold(passes)
        chances.append(all_longer_fail * share)
        all_longer_fail *= 1 - share
    return [all_longer_fail, *reversed(chances)]


def _next_token(target_QV: Tensor, draft_KV: Tensor, proposed: tuple[int, ...], accepted: int) -> Tensor:
    """The distribution of the token that follows `accepted` kept ones, by the thresholds of the last draw, `[V]`."""
    uniforms = [_ALMOST_ONE] * len(proposed)
    if accepted:
        uniforms[accepted - 1] = 1e-15

    def stays_within(token: int, uniform_N: Tensor) -> Tensor:
        uniform_NQ = torch.tensor([[*uniforms, 0.0]], dtype=torch.float64).repeat(len(uniform_N), 1)
        uniform_NQ[:, -1] = uniform_N
        return _verdicts(target_QV, draft_KV, proposed, uniform_NQ)[1] <= token

    cdf = [_threshold(partial(stays_within, token)) for token in range(_VOCAB)]
    return torch.tensor(cdf, dtype=torch.float64).diff(prepend=torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("num_proposed", [1, 2, 3])
@pytest.mark.parametrize("zeros", [0.0, 0.4])
def test_every_emitted_sequence_has_the_targets_probability(num_proposed: int, zeros: float) -> None:
    target, draft = _tables(10 * num_proposed, zeros), _tables(10 * num_proposed + 1, zeros)
    num_tokens = num_proposed + 1
    emitted = torch.zeros((_VOCAB,) * num_tokens, dtype=torch.float64)
    joint = torch.ones((), dtype=torch.float64)
    for depth in range(num_tokens):
        joint = joint[..., None] * target[depth]
    blockwise = tokenwise = 0.0
    for proposed in itertools.product(range(_VOCAB), repeat=num_proposed):
        target_QV, draft_KV = _along(target, proposed, num_tokens), _along(draft, proposed, num_proposed)
        positions = list(range(num_proposed))
        drawn = float(draft_KV[positions, list(proposed)].prod())
        if drawn == 0.0:
            continue
        kept_K = (target_QV[positions, list(proposed)] / draft_KV[positions, list(proposed)]).clamp(max=1.0)
        tokenwise += drawn * float(kept_K.cumprod(dim=0).sum())
        for accepted, chance in enumerate(_chances(target_QV, draft_KV, proposed)):
            blockwise += drawn * chance * accepted
            if chance < 1e-12:
                continue
            next_V = _next_token(target_QV, draft_KV, proposed, accepted)
            # What follows the round's last token is the target's own, round after round.
            follows = next_V
            for depth in range(accepted + 1, num_tokens):
                follows = follows[..., None] * target[depth][proposed[:accepted]]
            emitted[proposed[:accepted]] += drawn * chance * follows
    torch.testing.assert_close(emitted, joint, atol=1e-9, rtol=1e-6)
    assert blockwise >= tokenwise - 1e-9
    if num_proposed == 1:
        assert blockwise == pytest.approx(tokenwise, abs=1e-9)
    elif not zeros:
        assert blockwise > tokenwise + 1e-3


def test_one_token_is_judged_as_token_by_token() -> None:
    generator = torch.Generator().manual_seed(3)
    target_B2V = torch.softmax(2 * torch.randn(500, 2, 5, generator=generator), dim=-1)
    draft_B1V = torch.softmax(2 * torch.randn(500, 1, 5, generator=generator), dim=-1)
    proposed_B1 = torch.multinomial(draft_B1V[:, 0], 1, generator=generator)
    case = (
        target_B2V,
        draft_B1V,
        proposed_B1,
        torch.ones(500, dtype=torch.long),
        torch.rand(500, 2, generator=generator),
    )
    for own, other in zip(reject_blockwise(*case), reject_tokenwise(*case), strict=True):
        assert torch.equal(own, other)


def test_rows_of_a_batch_are_judged_apart() -> None:
    lengths = [0, 1, 2, 3, 3]
    generator = torch.Generator().manual_seed(4)
    target_BQV = torch.softmax(torch.randn(5, 4, 6, generator=generator, dtype=torch.float64), dim=-1)
    draft_BKV = torch.softmax(torch.randn(5, 3, 6, generator=generator, dtype=torch.float64), dim=-1)
    seen = set()
    for _ in range(40):
        proposed_BK = torch.randint(0, 6, (5, 3), generator=generator)
        uniform_BQ = torch.rand(5, 4, generator=generator, dtype=torch.float64)
        found = reject_blockwise(target_BQV, draft_BKV, proposed_BK, torch.tensor(lengths), uniform_BQ)
        for row, length in enumerate(lengths):
            alone = _verdict(
                target_BQV[row, : length + 1],
                draft_BKV[row, :length],
                tuple(proposed_BK[row, :length].tolist()),
                uniform_BQ[row, : length + 1].tolist(),
            )
            assert (int(found[0][row]), int(found[1][row])) == alone
            seen.add(alone[0])
    assert seen == {0, 1, 2, 3}


def test_identical_distributions_accept_everything() -> None:
    probs_QV = torch.softmax(torch.randn(3, 6, generator=torch.Generator().manual_seed(9)), dim=-1).double()
    assert _verdict(probs_QV, probs_QV[:2], (1, 2), [_ALMOST_ONE, _ALMOST_ONE, 0.5])[0] == 2


def test_a_token_that_the_target_cannot_emit_is_never_kept() -> None:
    target_QV = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    draft_KV = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    assert _verdict(target_QV, draft_KV, (0, 0), [1e-15, 1e-15, 0.5]) == (0, 1)


def test_a_one_hot_proposal_is_kept_with_the_targets_probability() -> None:
    """A deterministic drafter's draft distribution is 1 at its token: the block passes with the product of target's."""
    target_QV = torch.tensor([[0.3, 0.7], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)
    draft_KV = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert _chances(target_QV, draft_KV, (0, 1))[2] == pytest.approx(0.15, abs=1e-9)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_a_draft_distribution_that_is_none_ends_the_proposal(garbage: float) -> None:
    """What was proposed before counts as the whole proposal, and the token after it comes from the target."""
    target_QV = torch.tensor([[0.25, 0.75], [0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    draft_KV = torch.tensor([[0.25, 0.75], [garbage, garbage]], dtype=torch.float64)
    assert _verdict(target_QV, draft_KV, (1, 0), [_ALMOST_ONE, 1e-15, 0.6]) == (1, 1)
    assert _verdict(target_QV, draft_KV.fill_(garbage), (1, 0), [1e-15, 1e-15, 0.2]) == (0, 0)
