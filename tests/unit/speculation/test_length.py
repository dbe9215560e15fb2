"""Speculation lengths follow goodput: expected committed tokens per millisecond."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osd.config.drafter import SpeculationConfig
from osd.config.versions import SwapConfig
from osd.speculation.arm import PLAIN, Arm, Choice
from osd.speculation.budget import RowBudget, RowHistory
from osd.speculation.cost import ArmCosts, CostCurve
from osd.speculation.depth_acceptance import AcceptanceModel, RowAcceptance
from osd.speculation.length import GoodputPolicy
from osd.speculation.watch import SwapWatch
from tests.kit.lookup_drafter import LookupDrafter

_MAX = 4


def _arm(draft_ms: float = 2.0) -> Arm:
    """A drafted token takes so long, ten tokens read 1 ms."""
    costs = ArmCosts(
        draft=CostCurve({(1, 1): draft_ms, (1, 4): 4 * draft_ms}),
        reading=CostCurve({(1, 1): 0.1, (1, 100): 10.0}),
    )
    return Arm(LookupDrafter(), costs, AcceptanceModel(_MAX), SwapWatch(SwapConfig().watch_rounds))


def _policy(
    *arms: Arm, verify: dict[tuple[int, int], float] | None = None, draft_ms: float = 2.0, **config: Any
) -> GoodputPolicy:
    """By default one arm, a pass costs 20 ms whatever its width, a drafted token 2 ms: an idle machine."""
    curve = CostCurve(verify or {(1, 1): 20.0, (1, 5): 20.0})
    return GoodputPolicy(SpeculationConfig(max_length=_MAX, **config), curve, arms or (_arm(draft_ms),))


def _lengths(policy: GoodputPolicy, rows: list[RowBudget], judged: Arm | None = None) -> list[int]:
    return [choice.length for choice in policy.choose(rows, judged=judged)]


def _reset(policy: GoodputPolicy, gate: dict[str, float]) -> None:
    policy.arms[0].acceptance.reset(gate)


def _offered(policy: GoodputPolicy, *lengths: int) -> list[Choice]:
    return [Choice(policy.arms[0], length) if length else PLAIN for length in lengths]


def _rows(number: int = 1, **fields: Any) -> list[RowBudget]:
    return [RowBudget(limit=_MAX, **fields) for _ in range(number)]


def _serve(policy: GoodputPolicy, acceptance: float, rounds: int, *, num_rows: int = 1, seed: int = 0) -> list[int]:
    """Rounds in which each proposed token is accepted with one probability; the lengths chosen."""
    chance, chosen, rows = random.Random(seed), [], _rows(num_rows)
    for number in range(rounds):
        if number % 30 == 0:
            rows = _rows(num_rows)  # new queries
        choices = policy.choose(rows)
        accepted = []
        for _, length in choices:
            kept = 0
            while kept < length and chance.random() < acceptance:
                kept += 1
            accepted.append(kept)
        width = max(length for _, length in choices)
        policy.observe(
            rows,
            choices,
            accepted,
            draft_ms=policy.arms[0].costs.draft.ms(num_rows, width) if width else 0.0,
            verify_ms=policy.verify.ms(num_rows, width + 1),
        )
        chosen.append(policy.chosen)
    return chosen


def test_a_useless_drafter_is_left_alone_but_for_probes() -> None:
    policy = _policy(probe_interval_rounds=24)
    chosen = _serve(policy, 0.0, 2000)[200:]
    assert set(chosen) == {0, 1}
    assert sum(chosen) == pytest.approx(len(chosen) / 24, abs=2)


def test_a_dear_look_is_a_rare_one() -> None:
    """Where a second token makes a pass half as long again, as with many rows, looking takes 1% of the time."""
    policy = _policy(verify={(1, 1): 20.0, (1, 5): 58.0}, draft_ms=0.5)
    chosen = _serve(policy, 0.0, 3000)[200:]
    assert sum(chosen) == pytest.approx(len(chosen) / 51, abs=2)


def test_a_look_that_takes_longer_than_it_should_is_a_rare_one_too() -> None:
    """A drafter that was not asked for long has much to read: 100 ms here, five plain rounds, so once in 500."""
    policy, rows, looks = _policy(probe_interval_rounds=24), _rows(), 0
    _serve(policy, 0.0, 300)
    for _ in range(5000):
        [length] = _lengths(policy, rows)
        looks += length
        took_ms = policy.verify.ms(1, length + 1)
        policy.observe(rows, _offered(policy, length), [0], draft_ms=100.0 * length, verify_ms=took_ms)
    assert looks == pytest.approx(5000 / 500, abs=4)


def test_prompts_that_the_drafter_reads_do_not_make_drafting_seem_dear() -> None:
    """Queries of two rounds each: half of all rounds begin with 100 tokens to read, in 30 ms instead of 10."""
    policy = _policy()
    [arm] = policy.arms
    for number in range(400):
        is_new = number % 2 == 0
        history = RowHistory(num_read=0 if is_new else 108)
        row = RowBudget(limit=_MAX, num_tokens=110, histories={arm: history})
        draft_ms = arm.costs.draft.ms(1, 2) + 33.0 * is_new
        policy.observe([row], _offered(policy, 2), [1], draft_ms=draft_ms, verify_ms=20.0)
        assert history.num_read == 110
    assert arm.costs.draft.scale == pytest.approx(1.0)
    assert arm.costs.reading.ms(1, 110) == pytest.approx(33.0, rel=0.01)


def test_reading_prompts_must_pay_too() -> None:
    """Acceptance makes a token a third cheaper: 6 ms of 20. Reading its prompt of 100 tokens takes 10 ms."""
    for output_tokens, is_worth_it in ((1, False), (200, True), (1, False)):
        policy = _policy()
        _reset(policy, {f"depth_{depth}": 0.6 * (depth == 1) for depth in range(1, _MAX + 1)})
        assert _lengths(policy, _rows()) == [1]
        policy.finished(100, 0)  # cancelled before it had an answer
        for _ in range(100):
            policy.finished(100, output_tokens)
        assert _lengths(policy, _rows()) == [int(is_worth_it)]


def test_a_machine_that_stood_still_during_a_look_looks_again_soon() -> None:
    """An hour in which the process was stopped counts as no more than ten times what was expected."""
    policy, rows = _policy(probe_interval_rounds=24), _rows()
    _serve(policy, 0.0, 300)
    while not _lengths(policy, rows)[0]:
        policy.observe(rows, [PLAIN], [0], draft_ms=0.0, verify_ms=20.0)
    policy.observe(rows, _offered(policy, 1), [0], draft_ms=3.6e6, verify_ms=20.0)
    assert sum(_serve(policy, 0.0, 1000)) >= 2


def test_few_of_many_rows_are_probed() -> None:
    """Those beyond them need not be drafted for at all: the last proposing row is among the first."""
    policy = _policy(probe_interval_rounds=2, draft_ms=0.1)
    _serve(policy, 0.0, 300)
    rows = [RowBudget(limit=4) for _ in range(17)]
    looks = [_lengths(policy, rows) for _ in range(4)]
    assert sorted(sum(look) for look in looks) == [0, 0, 3, 3]
    assert all(look in ([0] * 17, [1] * 3 + [0] * 14) for look in looks)


def test_a_drafter_that_got_better_is_found_by_probing() -> None:
    policy = _policy()
    _serve(policy, 0.0, 300)
    assert policy.chosen == 0
    chosen = _serve(policy, 0.95, 6000, seed=1)
    assert min(chosen[-100:]) >= 2


def test_a_swap_with_good_gate_figures_is_tried_at_once() -> None:
    policy = _policy()
    _serve(policy, 0.0, 300)
    assert policy.chosen == 0
    _reset(policy, {"depth_1": 0.8, "depth_2": 0.7})
    assert _lengths(policy, _rows())[0] >= 2


def test_a_swap_without_gate_figures_gets_another_chance() -> None:
    policy = _policy(draft_ms=0.5)
    _serve(policy, 0.0, 300)
    _reset(policy, {})
    assert _lengths(policy, _rows())[0] >= 1


def test_better_acceptance_never_shortens() -> None:
    policy, lengths = _policy(), []
    for percent in range(0, 101, 5):
        _reset(policy, {"depth_1": percent / 100})
        lengths.append(_lengths(policy, _rows())[0])
    assert lengths[0] == 0
    assert lengths[-1] == _MAX
    assert lengths == sorted(lengths)


def test_the_length_settles_where_goodput_is_best() -> None:
    """At acceptance 0.6 and these costs the best length is found by plain arithmetic."""
    policy = _policy(draft_ms=4.0)
    goodput = [sum(0.6**depth for depth in range(length + 1)) / (20.0 + 4.0 * length) for length in range(_MAX + 1)]
    best = goodput.index(max(goodput))
    chosen = _serve(policy, 0.6, 1500)[500:]
    assert max(set(chosen), key=chosen.count) == best


def test_a_loaded_machine_decodes_plainly() -> None:
    """Where a pass costs by the token, verifying five costs five times as much: a fair drafter does not pay."""
    by_token = {(rows, tokens): 5.0 * rows * tokens for rows in (1, 16) for tokens in (1, 5)}
    assert set(_serve(_policy(verify=by_token), 0.5, 600, num_rows=16)[100:]) <= {0, 1}
    assert _serve(_policy(verify=by_token), 0.5, 600, num_rows=16)[100:].count(1) <= 30


def test_a_row_that_is_accepted_less_weighs_less() -> None:
    policy = _policy()
    _reset(policy, {"depth_1": 0.5})
    poor = RowAcceptance(accepted=0.0, expected=200.0)
    assert policy.arms[0].acceptance.expected([poor.factor], [_MAX])[0][1] < 0.05
    assert _lengths(policy, [RowBudget(limit=_MAX, histories={policy.arms[0]: RowHistory(poor)})]) == [0]
    assert _lengths(policy, _rows())[0] > 0


def test_limits_and_fixed_lengths_are_kept() -> None:
    policy = _policy()
    _reset(policy, {"depth_1": 1.0})
    rows = [RowBudget(limit=_MAX), RowBudget(limit=1), RowBudget(limit=0), RowBudget(limit=3, fixed=4)]
    rows += [RowBudget(limit=_MAX, fixed=0), RowBudget(limit=_MAX, fixed=2)]
    assert _lengths(policy, rows) == [4, 1, 0, 3, 0, 2]


def test_the_configuration_fixes_or_forbids() -> None:
    assert _lengths(_policy(fixed_length=2), _rows(2)) == [2, 2]
    assert _lengths(_policy(fixed_length=0), _rows(2)) == [0, 0]
    off = _policy(enabled=False)
    assert off.choose(_rows(1, fixed=3), judged=off.arms[0]) == [PLAIN]


def test_a_fresh_swap_is_judged_even_where_it_would_not_pay() -> None:
    policy = _policy()
    _reset(policy, {"depth_1": 0.0})
    assert _lengths(policy, _rows()) == [0]
    assert _lengths(policy, _rows(), judged=policy.arms[0]) == [1]


# ---- several arms --------------------------------------------------------------------------------------------------


def test_the_arm_with_the_better_goodput_proposes() -> None:
    """One is accepted more, the other costs so much less that it pays all the same."""
    good, cheap = _arm(draft_ms=8.0), _arm(draft_ms=0.1)
    good.acceptance.reset({"depth_1": 0.9})
    cheap.acceptance.reset({"depth_1": 0.5})
    policy = _policy(good, cheap)
    assert {choice.arm for choice in policy.choose(_rows(2))} == {cheap}
    cheap.acceptance.reset({"depth_1": 0.05})
    assert {choice.arm for choice in policy.choose(_rows(2))} == {good}


def test_an_arm_that_is_not_chosen_is_probed_by_few_rows() -> None:
    """The other rows go on with the better arm: both propose in one round."""
    best, other = _arm(), _arm()
    best.acceptance.reset({"depth_1": 0.9})
    other.acceptance.reset({"depth_1": 0.1})
    policy = _policy(best, other, probe_interval_rounds=24)
    chosen = [policy.choose(_rows(9)) for _ in range(240)]
    probes = [choices for choices in chosen if any(choice.arm is other for choice in choices)]
    assert len(probes) == 10
    assert all(choices[:2] == [Choice(other, 1)] * 2 for choices in probes)
    assert all({choice.arm for choice in choices[2:]} == {best} for choices in chosen)


def test_an_arm_that_got_better_takes_over() -> None:
    best, other = _arm(), _arm()
    best.acceptance.reset({"depth_1": 0.5})
    other.acceptance.reset({"depth_1": 0.0})
    policy, rows = _policy(best, other), _rows(1)
    for _ in range(4000):
        choices = policy.choose(rows)
        [(arm, length)] = choices
        accepted = [length if arm is other else int(length > 1)]
        policy.observe(rows, choices, accepted, draft_ms=2.0 * length, verify_ms=20.0)
    assert [choice.arm for choice in policy.choose(rows)] == [other]


def test_a_broken_arm_is_left_out_and_a_judged_one_is_used() -> None:
    best, other = _arm(), _arm()
    best.acceptance.reset({"depth_1": 0.9})
    policy = _policy(best, other)
    assert {choice.arm for choice in policy.choose(_rows(), judged=other)} == {other}
    best.is_broken = True
    assert {choice.arm for choice in policy.choose(_rows())} == {other}
    other.is_broken = True
    assert policy.choose(_rows(2), judged=other) == [PLAIN, PLAIN]


def test_what_arms_take_together_is_no_ones_cost() -> None:
    one, other = _arm(), _arm()
    policy, rows = _policy(one, other), _rows(2)
    choices = [Choice(one, 2), Choice(other, 1)]
    policy.observe(rows, choices, [2, 0], draft_ms=1e3, verify_ms=20.0)
    assert one.costs.draft.scale == other.costs.draft.scale == 1.0
    assert one.acceptance.by_depth()[0] > 0.3 > other.acceptance.by_depth()[0]
    assert (rows[0].of(one).acceptance.accepted, rows[1].of(one).acceptance.accepted) == (2, 0)


# ---- acceptance ----------------------------------------------------------------------------------------------------


def test_acceptance_is_counted_where_it_was_tested() -> None:
    """Two of four accepted: depths 1 and 2 succeeded, 3 failed, 4 was never reached."""
    model, row = AcceptanceModel(4), RowAcceptance()
    before = model.by_depth()
    model.observe([row], [4], [2], [None])
    after = model.by_depth()
    assert after[0] > before[0]
    assert after[1] > before[1]
    assert after[2] < before[2]
    assert after[3] == before[3]
    assert row.accepted == 2


def test_acceptance_converges_to_what_is_seen() -> None:
    model = AcceptanceModel(2)
    for number in range(2000):
        model.observe([RowAcceptance()], [2], [2 if number % 4 == 0 else (number % 2)], [None])
    # Of four rounds: 2, 1, 0, 1 accepted: depth 1 in three of four, depth 2 in one of the three that reached it.
    assert model.by_depth() == pytest.approx([0.75, 1 / 3], abs=0.02)
    assert model.expected([1.0], [2]) == [pytest.approx([0.0, 0.75, 1.0], abs=0.04)]


def test_gate_figures_are_the_prior() -> None:
    model = AcceptanceModel(3)
    model.reset({"candidate": 0.4, "depth_2": 0.2})
    assert model.by_depth() == pytest.approx([0.4, 0.2, 0.2])
    model.reset({"depth_1": 1.7})
    assert model.by_depth()[0] == 1.0


# ---- cost ----------------------------------------------------------------------------------------------------------


def test_costs_between_the_points_are_interpolated() -> None:
    curve = CostCurve({(1, 1): 10.0, (1, 5): 18.0, (8, 1): 20.0, (8, 5): 52.0})
    assert curve.ms(1, 1) == 10.0
    assert curve.ms(1, 3) == pytest.approx(14.0)
    assert curve.ms(8, 5) == pytest.approx(52.0)
    assert curve.ms(4, 1) == pytest.approx(10.0 + 10.0 * 3 / 7)
    assert curve.ms(15, 1) == pytest.approx(30.0)  # beyond the last point the line goes on
    assert CostCurve({(1, 1): 3.0}).ms(7, 9) == 3.0


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 50), min_size=6, max_size=6),
    st.integers(1, 12),
    st.integers(1, 8),
)
def test_more_tokens_never_look_cheaper(times_ms: list[float], rows: int, tokens: int) -> None:
    """However noisy the calibration."""
    grid = [(one, width) for one in (1, 8) for width in (1, 2, 5)]
    curve = CostCurve(dict(zip(grid, times_ms, strict=True)))
    if rows <= 8:
        assert curve.ms(rows, tokens) <= curve.ms(rows, tokens + 1) + 1e-9


def test_a_curve_needs_a_point() -> None:
    with pytest.raises(ValueError, match="at least one"):
        CostCurve({})


def test_one_outlier_hardly_counts() -> None:
    curve = CostCurve({(1, 1): 10.0})
    curve.observe(1, 1, 10_000.0)
    assert curve.ms(1, 1) <= 10.5
    curve.observe(1, 1, 0.0)
    assert curve.ms(1, 1) >= 9.7


def test_the_scale_follows_a_machine_that_became_slower() -> None:
    curve = CostCurve({(1, 1): 10.0, (1, 5): 20.0})
    for _ in range(300):
        curve.observe(1, 5, 60.0)
    assert curve.ms(1, 5) == pytest.approx(60.0, rel=0.02)
    assert curve.ms(1, 1) == pytest.approx(30.0, rel=0.02)
