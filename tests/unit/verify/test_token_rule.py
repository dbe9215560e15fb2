"""Rejection sampling gives exactly the target's distribution: by enumeration over a tiny vocabulary, without chance.

Every random choice of the rule is integrated out: the proposals by summing over all of them with their draft
probabilities, the acceptance tests by the exact thresholds at which they flip, and the last draw by its weights.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from osd.verify.token_rule import match_greedy, residual
from osd.verify.token_rule import reject_tokenwise as reject_rows

_VOCAB = 4
_POINTS = 400
"""Draws of the last token, evenly over the unit interval."""


def reject_tokenwise(target_QV: Tensor, draft_KV: Tensor, proposed_K: Tensor, uniform_Q: Tensor) -> tuple[int, int]:
    """The rule, on a batch of two: the row in question, and one that proposes nothing."""
    target, draft, proposed, uniform = (torch.stack((one, one)) for one in (target_QV, draft_KV, proposed_K, uniform_Q))
    num_accepted_B, next_B = reject_rows(target, draft, proposed, torch.tensor([len(proposed_K), 0]), uniform)
    assert int(num_accepted_B[1]) == 0 and target_QV[0, next_B[1]] > 0
    return int(num_accepted_B[0]), int(next_B[0])


def _random_probs(shape: tuple[int, ...], seed: int, zeros: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(*shape, generator=generator, dtype=torch.float64) ** 3 + 1e-3
    weights = weights.where(torch.rand(shape, generator=generator) >= zeros, 0.0)
    weights[..., 0] += 1e-3
    return weights / weights.sum(dim=-1, keepdim=True)


def _acceptance(target_probs: float, draft_probs: float) -> float:
    """The share of uniform draws in [0, 1) that accept, found on the rule itself by bisection."""

    def accepts(uniform: float) -> bool:
        # Two tokens: the proposed one, and one that takes the rest.
        target = torch.tensor([[target_probs, 1 - target_probs], [1.0, 0.0]], dtype=torch.float64)
        draft = torch.tensor([[draft_probs, 1 - draft_probs]], dtype=torch.float64)
        uniforms = torch.tensor([uniform, 0.0], dtype=torch.float64)
        return reject_tokenwise(target, draft, torch.tensor([0]), uniforms)[0] == 1

    if not accepts(0.0):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if accepts(middle) else (low, middle)
    return low


@pytest.mark.parametrize(
    ("target", "draft"), [(0.3, 0.6), (0.6, 0.3), (0.5, 0.5), (0.0, 0.7), (1.0, 0.2), (0.25, 1.0), (1e-9, 0.5)]
)
def test_a_token_is_accepted_with_the_ratio_of_its_probabilities(target: float, draft: float) -> None:
    assert _acceptance(target, draft) == pytest.approx(min(1.0, target / draft), abs=1e-9)


def _last_draw(target: Tensor, draft: Tensor, proposed: Tensor, accepted: int) -> Tensor:
    """How the token after `accepted` kept ones is distributed, `[V]`, from the rule on an even grid of draws."""
    num_proposed = len(proposed)
    uniform_NQ = torch.zeros(_POINTS, num_proposed + 1, dtype=torch.float64)
    if accepted < num_proposed:
        uniform_NQ[:, accepted] = 1.0 - 1e-12  # rejects whatever can be rejected
    uniform_NQ[:, num_proposed] = (torch.arange(_POINTS) + 0.5) / _POINTS
    kept_N, token_N = reject_rows(
        target.expand(_POINTS, -1, -1),
        draft.expand(_POINTS, -1, -1),
        proposed.expand(_POINTS, -1),
        torch.full((_POINTS,), num_proposed),
        uniform_NQ,
    )
    assert bool((kept_N == accepted).all())
    return torch.bincount(token_N, minlength=target.shape[-1]).double() / _POINTS


@pytest.mark.parametrize("zeros", [0.0, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_every_emitted_sequence_has_the_targets_probability(seed: int, zeros: float) -> None:
    """K = 2 proposals: P(first three tokens) = product of the target's conditionals, for every sequence.

    Conditionals differ by context, as a model's do: the tables are looked up by the tokens before.
    """
    generator_seed = 100 * seed
    target_1 = _random_probs((_VOCAB,), generator_seed + 1, zeros)
    target_2 = _random_probs((_VOCAB, _VOCAB), generator_seed + 2, zeros)
    target_3 = _random_probs((_VOCAB, _VOCAB, _VOCAB), generator_seed + 3, zeros)
    draft_1 = _random_probs((_VOCAB,), generator_seed + 4, zeros)
    draft_2 = _random_probs((_VOCAB, _VOCAB), generator_seed + 5, zeros)
    emitted = torch.zeros(_VOCAB, _VOCAB, _VOCAB, dtype=torch.float64)
    for first, second in itertools.product(range(_VOCAB), repeat=2):
        drawn = float(draft_1[first] * draft_2[first, second])
        if drawn == 0.0:
            continue
        target = torch.stack((target_1, target_2[first], target_3[first, second]))
        draft = torch.stack((draft_1, draft_2[first]))
        keep_1 = min(1.0, float(target_1[first] / draft_1[first]))
        keep_2 = min(1.0, float(target_2[first, second] / draft_2[first, second]))
        chances = [1 - keep_1, keep_1 * (1 - keep_2), keep_1 * keep_2]
        for accepted, chance in enumerate(chances):
            if chance < 1e-9:
                continue
            last = _exact_last(target, draft, torch.tensor([first, second]), accepted)
            # What follows the round's last token is the target's own, round after round.
            if accepted == 0:
                emitted += drawn * chance * last[:, None, None] * target_2[:, :, None] * target_3
            elif accepted == 1:
                emitted[first] += drawn * chance * last[:, None] * target_3[first]
            else:
                emitted[first, second] += drawn * chance * last
    expected = target_1[:, None, None] * target_2[:, :, None] * target_3
    torch.testing.assert_close(emitted, expected, atol=1e-9, rtol=1e-7)


def _exact_last(target: Tensor, draft: Tensor, proposed: Tensor, accepted: int) -> Tensor:
    """The weights of the last draw; that the rule does draw by them is checked on its grid of draws."""
    weights = target[accepted]
    if accepted < len(proposed):
        weights = (target[accepted] - draft[accepted]).clamp(min=0.0)
    weights = weights / weights.sum()
    drawn = _last_draw(target, draft, proposed, accepted) if _forceable(target, draft, proposed, accepted) else weights
    torch.testing.assert_close(drawn, weights, atol=2.0 / _POINTS, rtol=0.0)
    return weights


def _forceable(target: Tensor, draft: Tensor, proposed: Tensor, accepted: int) -> bool:
    """Draws of 0 accept what can be accepted at all; is every token before the last one of that sort?"""
    return all(target[position, proposed[position]] > 0 for position in range(accepted))


def test_nothing_proposed_is_a_plain_draw() -> None:
    target = torch.tensor([[0.2, 0.0, 0.8]])
    empty = torch.empty(0, dtype=torch.long)
    assert reject_tokenwise(target, target[:0], empty, torch.tensor([0.1])) == (0, 0)
    assert reject_tokenwise(target, target[:0], empty, torch.tensor([0.2])) == (0, 2)


def test_a_one_hot_proposal_is_kept_with_the_targets_probability() -> None:
    target, draft = torch.tensor([[0.3, 0.7], [0.5, 0.5]]), torch.tensor([[1.0, 0.0]])
    assert reject_tokenwise(target, draft, torch.tensor([0]), torch.tensor([0.29, 0.6])) == (1, 1)
    assert reject_tokenwise(target, draft, torch.tensor([0]), torch.tensor([0.31, 0.0])) == (0, 1)


def test_a_token_that_the_target_cannot_emit_is_never_kept() -> None:
    target, draft = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.5, 0.5]])
    assert reject_tokenwise(target, draft, torch.tensor([0]), torch.tensor([0.0, 0.0])) == (0, 1)


def test_tokens_after_a_rejected_one_do_not_count() -> None:
    target = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    draft = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert reject_tokenwise(target, draft, torch.tensor([0, 0]), torch.tensor([0.5, 0.0, 0.0])) == (0, 1)


def test_identical_distributions_accept_everything() -> None:
    probs = _random_probs((3, _VOCAB), 9)
    proposed = torch.tensor([1, 2])
    uniform = torch.tensor([1.0 - 2.0**-24, 1.0 - 2.0**-24, 0.5], dtype=torch.float64)
    assert reject_tokenwise(probs, probs[:2], proposed, uniform)[0] == 2


def test_draft_probabilities_that_overflowed_accept_nothing() -> None:
    """A broken drafter's NaN leaves the target's own distribution."""
    target, draft = torch.tensor([[0.25, 0.75], [0.5, 0.5]]), torch.full((1, 2), float("nan"))
    assert reject_tokenwise(target, draft, torch.tensor([0]), torch.tensor([0.0, 0.2])) == (0, 0)
    assert reject_tokenwise(target, draft, torch.tensor([0]), torch.tensor([0.0, 0.3])) == (0, 1)


def test_the_residual_is_what_the_draft_lacks() -> None:
    target_BV, draft_BKV = torch.tensor([[0.5, 0.25, 0.25, 0.0]]), torch.tensor([[[0.0] * 4, [0.25, 0.5, 0.0, 0.25]]])
    proposed_BK, position_B = torch.tensor([[0, 2]]), torch.tensor([1])
    assert residual(target_BV, draft_BKV, proposed_BK, position_B).tolist() == [[0.25, 0.0, 0.25, 0.0]]
    assert residual(target_BV, None, proposed_BK, position_B).tolist() == [[0.5, 0.25, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("proposed", "committed"),
    [([], [5]), ([5, 6], [5, 6, 7]), ([5, 9], [5, 6]), ([9, 6], [5]), ([5], [5, 6])],
)
def test_greedy_proposals_are_matched(proposed: list[int], committed: list[int]) -> None:
    assert match_greedy([5, 6, 7], proposed) == committed


def test_rows_of_a_batch_are_judged_apart() -> None:
    generator = torch.Generator().manual_seed(4)
    lengths = [0, 1, 2, 3, 3]
    target = torch.stack([_random_probs((4, _VOCAB), seed) for seed in range(5)])
    draft = torch.stack([_random_probs((3, _VOCAB), 50 + seed) for seed in range(5)])
    for _ in range(50):
        proposed = torch.randint(0, _VOCAB, (5, 3), generator=generator)
        uniform = torch.rand(5, 4, generator=generator, dtype=torch.float64)
        num_accepted_B, next_B = reject_rows(target, draft, proposed, torch.tensor(lengths), uniform)
        for row, length in enumerate(lengths):
            alone = reject_tokenwise(
                target[row, : length + 1], draft[row, :length], proposed[row, :length], uniform[row, : length + 1]
            )
            assert (int(num_accepted_B[row]), int(next_B[row])) == alone
