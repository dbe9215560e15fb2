"""Who proposes for a row this round, and how many tokens: the arm and the length with the best goodput.

SmartSpec (Liu et al. 2024, arXiv 2406.14066): maximise expected committed tokens per second, from each row's
acceptance history and the measured cost of drafting and verifying; here also of what a drafter reads before its first
proposal. Length 0 wins when drafting does not pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from osd.config.settings import SpeculationConfig
from osd.speculation.arm import PLAIN, Arm, Choice
from osd.speculation.budget import RowBudget
from osd.speculation.cost import CostCurve, Costs

_WORTH_IT = 1.02
"""Speculation must promise this much more goodput than plain decoding: estimates are noisy, drafting is not free."""

_QUERY_STEP = 0.05
"""Weight of a finished query in the running averages of prompt and answer lengths."""
_ROWS_A_PROBE = 8
"""One row in this many takes part in a probe."""
_PROBE_STEP = 0.5
"""Weight of the last probe in the running average of what probes take."""
_PROBE_SHARE = 0.01
"""Probes may take this share of the time, however much longer than another round one is."""
_MOST_OF_A_PROBE = 10.0
"""Times what it was expected to take: a machine that stood still meanwhile must not end probing for hours."""


class _Plan(NamedTuple):
    """What the rows whose client fixed nothing do in a round, but for those that probe."""

    arm: Arm
    length: int


class GoodputPolicy:
    """Chooses for every row, each round.

    Args:
        config: limits, and what the operator fixed.
        verify: what the target's passes cost, by (rows, tokens a row).
        arms: who can propose; none decodes plainly.
    """

    def __init__(self, config: SpeculationConfig, verify: CostCurve, arms: Sequence[Arm]) -> None:
        self.config, self.verify, self.arms = config, verify, arms
        self.chosen = 0
        """The longest length of the last round."""
        self._plan: _Plan | None = None
        self._probed: Arm | None = None
        self._prompt_tokens = self._output_tokens = 0.0
        """Running averages over the queries that were answered."""

    def use(self, costs: Costs) -> None:
        """Go by other costs from here on: what rounds take has changed."""
        self.verify = costs.verify
        for arm, own in zip(self.arms, costs.arms, strict=True):
            arm.costs, arm.probe_ms = own, 0.0

    def choose(self, rows: Sequence[RowBudget], *, judged: Arm | None = None) -> list[Choice]:
        """Who proposes for each row, and how many tokens.

        Args:
            rows: the decoding rows.
            judged: an arm whose weights were just swapped, and which must propose at least one token for rows whose
                length is free, so that it can be compared with the version before.
        """
        usable = [arm for arm in self.arms if not arm.is_broken]
        if not (self.config.enabled and usable):
            return [PLAIN] * len(rows)
        plan = self._best([judged] if judged in usable else usable, rows)
        if self.config.fixed_length is not None:
            plan = plan._replace(length=self.config.fixed_length)
        elif plan.arm is judged:
            plan = plan._replace(length=max(plan.length, 1))
        probe = self._due(usable, plan, len(rows)) if self.config.fixed_length is None else None
        num_probed = 0 if probe is None else _num_probed(len(rows))
        self._plan, self._probed = plan, probe
        free = [Choice(probe, 1)] * num_probed + [Choice(*plan)] * (len(rows) - num_probed)
        self.chosen = max(choice.length for choice in free)
        return [_within(choice, row) for choice, row in zip(free, rows, strict=True)]

    def _best(self, arms: Sequence[Arm], rows: Sequence[RowBudget]) -> _Plan:
        """The arm and length of the greatest goodput, were all rows to follow it."""
        plans = [self._best_length(arm, rows) for arm in arms]
        best = min(range(len(plans)), key=lambda number: plans[number][1])
        return _Plan(arms[best], plans[best][0])

    def _best_length(self, arm: Arm, rows: Sequence[RowBudget]) -> tuple[int, float]:
        """An arm's best length, and the milliseconds a token that it promises."""
        accepted_by_depth = arm.acceptance.expected(
            [row.of(arm).acceptance for row in rows], [row.limit for row in rows]
        )
        best_length, best_ms = 0, self.verify.ms(len(rows), 1) / len(rows) / _WORTH_IT
        committed, reading_ms = float(len(rows)), self._reading_ms(arm)
        for length, accepted in enumerate(accepted_by_depth, start=1):
            committed += accepted
            token_ms = self._round_ms(arm, length, len(rows)) / committed + reading_ms
            if token_ms < best_ms:
                best_length, best_ms = length, token_ms
        return best_length, best_ms

    def _reading_ms(self, arm: Arm) -> float:
        """What it adds to each token that the drafter reads a query's prompt first, as the last queries were.

        Not what there is to read now: an arm that has read all but one row's prompt would always think that one cheap.
        """
        if not self._output_tokens:
            return 0.0
        return arm.costs.reading.ms(1, round(self._prompt_tokens)) / self._output_tokens

    def _round_ms(self, arm: Arm, length: int, num_rows: int) -> float:
        """A round in which an arm proposes so many tokens for every row."""
        draft_ms = arm.costs.draft.ms(num_rows, length) if length else 0.0
        return self.verify.ms(num_rows, length + 1) + draft_ms

    def _due(self, usable: Sequence[Arm], plan: _Plan, num_rows: int) -> Arm | None:
        """The arm that proposes one token for a few rows this round, although the plan is another; mostly none.

        Nothing is observed of an arm that is not chosen: without a rare probe, one that improved would never be
        noticed. A few rows are enough for it; for all of them, catching up would cost several plain rounds.
        """
        for arm in usable:
            arm.idle_rounds = 0 if plan.length and arm is plan.arm else arm.idle_rounds + 1
        due = max(usable, key=lambda arm: arm.idle_rounds)
        if due.idle_rounds < self.config.probe_interval_rounds:
            return None
        num_worth = self._expected_probe_ms(due, plan, num_rows) / self._plan_ms(plan, num_rows) / _PROBE_SHARE
        if due.idle_rounds < num_worth:
            return None
        due.idle_rounds = 0
        return due

    def _plan_ms(self, plan: _Plan, num_rows: int) -> float:
        """A round as planned, with no probe."""
        return self._round_ms(plan.arm, plan.length, num_rows)

    def _expected_probe_ms(self, arm: Arm, plan: _Plan, num_rows: int) -> float:
        """What a probe adds to a round as planned."""
        width = max(plan.length, 1) + 1
        verify_ms = self.verify.ms(num_rows, width) - self.verify.ms(num_rows, plan.length + 1)
        return max(verify_ms + arm.costs.draft.ms(_num_probed(num_rows), 1), arm.probe_ms)

    def finished(self, prompt_tokens: int, output_tokens: int) -> None:
        """A query ended."""
        if not output_tokens:
            return
        step = _QUERY_STEP if self._output_tokens else 1.0
        self._prompt_tokens += step * (prompt_tokens - self._prompt_tokens)
        self._output_tokens += step * (output_tokens - self._output_tokens)

    def observe(
        self,
        rows: Sequence[RowBudget],
        proposed: Sequence[Choice],
        accepted: Sequence[int],
        *,
        draft_ms: float,
        verify_ms: float,
    ) -> None:
        """Learn from one round.

        Args:
            rows: the decoding rows.
            proposed: who proposed for each, and how many tokens it was in the end.
            accepted: how many of them were accepted.
            draft_ms: what drafting took, of all arms together.
            verify_ms: what verifying took.
        """
        self.verify.observe(len(rows), max(choice.length for choice in proposed) + 1, verify_ms)
        used = list(dict.fromkeys(choice.arm for choice in proposed if choice.arm is not None))
        for arm in used:
            lengths = [choice.length if choice.arm is arm else 0 for choice in proposed]
            arm.acceptance.observe([row.of(arm).acceptance for row in rows], lengths, accepted)
            drafted = rows[: _num_drafted(lengths)]
            if len(used) == 1:  # else nobody knows which of them took how long
                self._observe_draft(arm, drafted, max(lengths), draft_ms)
            for row in drafted:
                row.of(arm).num_read = row.num_tokens
        if self._probed in used and self._plan is not None:
            arm = self._probed
            took_ms = draft_ms + verify_ms - self._plan_ms(self._plan, len(rows))
            most_ms = _MOST_OF_A_PROBE * self._expected_probe_ms(arm, self._plan, len(rows))
            arm.probe_ms += _PROBE_STEP * (min(took_ms, most_ms) - arm.probe_ms)

    def _observe_draft(self, arm: Arm, rows: Sequence[RowBudget], length: int, took_ms: float) -> None:
        """Of a round in which something was read first, only that is learnt, or drafting would seem dear."""
        unread = [row.num_tokens - row.of(arm).num_read for row in rows]
        late = [num for num in unread if num > self.config.max_length + 1]
        if late:
            arm.costs.reading.observe(1, sum(late), took_ms - arm.costs.draft.ms(len(rows), length))
        else:
            arm.costs.draft.observe(len(rows), length, took_ms)


def _num_probed(num_rows: int) -> int:
    return -(-num_rows // _ROWS_A_PROBE)


def _num_drafted(lengths: Sequence[int]) -> int:
    """Rows up to the last that proposes: a drafter is given no more."""
    return max(row for row, length in enumerate(lengths) if length) + 1


def _within(choice: Choice, row: RowBudget) -> Choice:
    """What a row makes of a choice: its client's length, and no more than it may propose."""
    length = min(choice.length if row.fixed is None else row.fixed, row.limit)
    return Choice(choice.arm, length) if length else PLAIN
