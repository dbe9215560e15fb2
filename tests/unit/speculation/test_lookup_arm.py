"""A lookup is chosen by row and round, where what it offers promises more tokens a second than the drafter."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osd.config.drafter import SpeculationConfig
from osd.config.versions import SwapConfig
from osd.drafters.suffix.lookup import SuffixLookup
from osd.drafters.suffix.pool import AnswerPool
from osd.records.proposal import NO_OFFER, Offer
from osd.speculation.arm import PLAIN, Arm, Choice
from osd.speculation.budget import RowBudget
from osd.speculation.cost import ArmCosts, CostCurve
from osd.speculation.depth_acceptance import AcceptanceModel, RowAcceptance
from osd.speculation.length import GoodputPolicy
from osd.speculation.lookup_arm import LookupArm
from osd.speculation.watch import SwapWatch
from tests.kit.lookup_drafter import LookupDrafter

_MAX = 4
_STRONG = Offer((1, 2, 3, 4), (0.95, 0.9, 0.85, 0.8))
_WEAK = Offer((1, 2), (0.2, 0.1))


def _lookup() -> LookupArm:
    return LookupArm(SuffixLookup(AnswerPool(0), 4))


def _policy(
    *, acceptance: float | None = 0.5, token_ms: float = 0.0, draft_ms: float = 2.0, **config: Any
) -> GoodputPolicy:
    """A pass takes 20 ms and `token_ms` for each further token; with None there is no drafter."""
    arms = []
    if acceptance is not None:
        costs = ArmCosts(CostCurve({(1, 1): draft_ms, (1, 4): 4 * draft_ms}), CostCurve({(1, 1): 0.001, (1, 9): 0.009}))
        arms = [Arm(LookupDrafter(), costs, AcceptanceModel(_MAX), SwapWatch(SwapConfig().watch_rounds))]
        arms[0].acceptance.reset({"depth_1": acceptance})
    verify = CostCurve({(1, 1): 20.0, (1, 5): 20.0 + 4 * token_ms})
    return GoodputPolicy(SpeculationConfig(max_length=_MAX, **config), verify, arms, _lookup())


def _rows(*offers: Offer, limit: int = _MAX, **fields: Any) -> list[RowBudget]:
    return [RowBudget(limit=limit, offer=offer, **fields) for offer in offers]


def _names(choices: Sequence[Choice]) -> list[tuple[str, int]]:
    return [(choice.arm.name if choice.arm else "", choice.length) for choice in choices]


def test_rows_of_one_batch_are_drafted_for_by_what_promises_more() -> None:
    policy = _policy()
    chosen = _names(policy.choose(_rows(_STRONG, NO_OFFER, _WEAK)))
    [_, (_, length), _] = chosen
    assert chosen == [("suffix", 4), ("lookup", length), ("lookup", length)] and length > 0


def test_where_drafting_costs_time_a_lookup_that_promises_less_is_chosen() -> None:
    """The drafter's two tokens would take as long as a pass."""
    modest = Offer((1, 2), (0.6, 0.5))
    assert _names(_policy(acceptance=0.9, draft_ms=0.1).choose(_rows(modest))) == [("lookup", 4)]
    assert _names(_policy(acceptance=0.9, draft_ms=20.0).choose(_rows(modest))) == [("suffix", 2)]


def test_without_a_drafter_rows_without_an_offer_decode_plainly() -> None:
    policy = _policy(acceptance=None)
    assert _names(policy.choose(_rows(_STRONG, NO_OFFER))) == [("suffix", 4), ("", 0)]
    assert policy.choose(_rows(NO_OFFER)) == [PLAIN] and policy.chosen == 0


def test_no_more_is_proposed_than_pays() -> None:
    """A token to verify costs a third of a pass, so that only likely ones are worth it."""
    fading = Offer((1, 2, 3, 4), (0.9, 0.3, 0.1, 0.05))
    assert _names(_policy(acceptance=None, token_ms=8.0).choose(_rows(fading))) == [("suffix", 1)]
    assert _names(_policy(acceptance=None, token_ms=0.0).choose(_rows(fading))) == [("suffix", 4)]
    assert _policy(acceptance=None, token_ms=20.0).choose(_rows(fading)) == [PLAIN]


def test_a_row_proposes_no_more_than_it_may() -> None:
    policy = _policy()
    assert _names(policy.choose(_rows(_STRONG, limit=2))) == [("suffix", 2)]
    assert policy.choose(_rows(_STRONG, limit=0)) == [PLAIN]


def test_a_length_that_a_client_fixed_is_kept() -> None:
    policy = _policy()
    rows = [*_rows(_STRONG, fixed=3), *_rows(_WEAK, fixed=3), *_rows(_STRONG, fixed=0)]
    assert _names(policy.choose(rows)) == [("suffix", 3), ("lookup", 3), ("", 0)]


def test_a_lookup_that_promises_too_much_is_believed_less() -> None:
    lookup, row = _lookup(), RowAcceptance()
    before = lookup.expected(_STRONG, RowAcceptance(), _MAX)
    assert before == pytest.approx([0.0, 0.95, 1.85, 2.7, 3.5])
    for _ in range(400):
        lookup.observe(_STRONG, row, [9])
    assert lookup.expected(_STRONG, RowAcceptance(), _MAX)[1] < 0.2
    assert lookup.expected(_STRONG, row, _MAX)[1] < 0.01


def test_estimates_converge_to_what_is_accepted() -> None:
    """Every token is accepted half as often as promised."""
    chance, lookup = random.Random(0), _lookup()
    for _ in range(5000):
        kept = 0
        while kept < 2 and chance.random() < 0.4:
            kept += 1
        lookup.observe(Offer((1, 2), (0.8, 0.64)), RowAcceptance(), [1, 2, 7][:kept] + [9])
    assert lookup.expected(Offer((1,), (0.8,)), RowAcceptance(), 1)[1] == pytest.approx(0.4, abs=0.03)


@given(st.lists(st.integers(0, 2), max_size=4), st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_only_tokens_whose_fate_is_known_are_judged(offered: list[int], committed: list[int]) -> None:
    """An offer that was not proposed is compared with what was committed, as far as that goes."""
    lookup, row = _lookup(), RowAcceptance()
    lookup.observe(Offer(tuple(offered), tuple(0.5**n for n in range(1, len(offered) + 1))), row, committed)
    equal = next((n for n, pair in enumerate(zip(offered, committed, strict=False)) if pair[0] != pair[1]), None)
    num_equal = min(len(offered), len(committed)) if equal is None else equal
    assert row.accepted == num_equal
    assert row.expected == 0.5 * (num_equal + (equal is not None))


def test_a_drafter_is_probed_in_rows_that_the_lookup_does_not_propose_for() -> None:
    """It is useless, and nobody would notice when that changes."""
    policy, probes = _policy(acceptance=0.0, probe_interval_rounds=4, draft_ms=0.01), []
    for _ in range(200):
        probes.append(_names(policy.choose(_rows(_STRONG, NO_OFFER))))
    assert {first for first, _ in probes} == {("suffix", 4)}
    assert 0 < sum(second == ("lookup", 1) for _, second in probes) <= 50
    policy = _policy(acceptance=0.0, probe_interval_rounds=4, draft_ms=0.01)
    assert all(_names(policy.choose(_rows(_STRONG))) == [("suffix", 4)] for _ in range(200))


def test_a_version_that_is_watched_proposes_where_the_lookup_does_not() -> None:
    policy = _policy(acceptance=0.0)
    assert _names(policy.choose(_rows(_STRONG, NO_OFFER), judged=policy.arms[0])) == [("suffix", 4), ("lookup", 1)]


@pytest.mark.parametrize("learned", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("quality", [0.0, 0.5, 1.0])
def test_fewer_rounds_are_needed_with_a_lookup_than_without(learned: float, quality: float) -> None:
    """Of 4,000 tokens. What the lookup offers is right as often as promised, half as often, or never."""

    def num_rounds(has_lookup: bool) -> int:
        policy, chance = _policy(acceptance=learned, fixed_length=4), random.Random(1)
        if not has_lookup:
            policy.lookup = None
        num_tokens = rounds = 0
        while num_tokens < 4000:
            if num_tokens % 40 == 0 or rounds == 0:
                row = RowBudget(limit=_MAX)
            promised = chance.choice([0.0, 0.0, 0.5, 0.9])
            row.offer = Offer((1, 1, 1, 1), tuple(promised**n for n in range(1, 5))) if promised else NO_OFFER
            found, own = (_kept(chance, rate) for rate in (promised * quality, learned))
            [choice] = policy.choose([row])
            accepted = min(found if isinstance(choice.arm, LookupArm) else own, choice.length)
            committed = ([1] * found + [2] * _MAX)[: accepted + 1]
            if policy.lookup is not None:
                policy.lookup.observe(row.offer, row.of(policy.lookup).acceptance, committed)
            policy.observe([row], [choice], [accepted], draft_ms=2.0, verify_ms=20.0)
            num_tokens, rounds = num_tokens + accepted + 1, rounds + 1
        return rounds

    without = num_rounds(False)
    assert num_rounds(True) <= without * (0.95 if quality == 1.0 and learned < 0.7 else 1.03)


def _kept(chance: random.Random, rate: float) -> int:
    """How many of four tokens are accepted."""
    return next((n for n in range(_MAX) if chance.random() >= rate), _MAX)


def _choices_over(policy: GoodputPolicy, rounds: int, easy: float, hard: float) -> list[str]:
    """Who proposes in rounds with an offer of 1.8 promised tokens, which keeps its promise.

    Args:
        policy: with a drafter.
        rounds: every other one has an offer.
        easy: acceptance of the drafter's tokens in rounds with an offer.
        hard: in the others.
    """
    chance, names = random.Random(2), []
    offer = Offer((1, 1, 1, 1), (0.7, 0.5, 0.35, 0.25))
    for number in range(rounds):
        row = RowBudget(limit=_MAX, offer=offer if number % 2 else NO_OFFER)
        [choice] = policy.choose([row])
        draw = chance.random()
        found = sum(draw < reach for reach in row.offer.reach)
        own = _kept(chance, easy if number % 2 else hard)
        accepted = min(found if isinstance(choice.arm, LookupArm) else own, choice.length)
        committed = ([1] * found + [2] * _MAX)[: accepted + 1]
        assert policy.lookup is not None
        policy.lookup.observe(row.offer, row.of(policy.lookup).acceptance, committed)
        policy.observe([row], [choice], [accepted], draft_ms=0.1 * choice.length, verify_ms=20.0)
        if number % 2:
            names.append(_names([choice])[0][0])
    return names


def test_a_drafter_is_judged_by_what_it_does_where_the_lookup_promises_as_much() -> None:
    """On average it is right half as often as where a text repeats itself; only rare tries can show that."""
    names = _choices_over(_policy(acceptance=0.5, draft_ms=0.1), 6000, easy=0.95, hard=0.5)
    assert names[-500:].count("lookup") > 450
    names = _choices_over(_policy(acceptance=0.5, draft_ms=0.1), 6000, easy=0.5, hard=0.5)
    assert 5 <= names[-500:].count("lookup") <= 30, "a try in 48"


def test_in_drifting_traffic_the_lookup_may_promise_a_little_less() -> None:
    policy = _policy(acceptance=0.7, draft_ms=0.1)
    policy.arms[0].kinds = [RowAcceptance(accepted=100.0, expected=100.0)] * 3  # it has been tried there
    [[*_, promised]] = policy.arms[0].acceptance.expected([1.0], [_MAX])
    for share, is_chosen, is_preferred in (
        (0.7, False, False),
        (0.95, False, True),
        (1.05, False, True),
        (1.2, True, True),
    ):
        offer = Offer((1, 2, 3, 4), tuple(share * promised / 4 for _ in range(4)))
        [usual], [drifting] = (policy.choose(_rows(offer, prefers_lookup=drifts)) for drifts in (False, True))
        assert (_names([usual])[0][0] == "suffix", _names([drifting])[0][0] == "suffix") == (is_chosen, is_preferred)


def test_a_drafter_that_promises_far_less_is_not_tried() -> None:
    policy = _policy(acceptance=0.3, draft_ms=0.1)
    for _ in range(200):
        assert _names(policy.choose(_rows(_STRONG))) == [("suffix", 4)]
