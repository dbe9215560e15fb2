"""Chooses the arm and the speculation length for each row by goodput.

SmartSpec (Liu et al. 2024, arXiv 2406.14066): maximise expected committed tokens per second, from each row's acceptance
history and the measured costs of drafting and verifying; here also from the cost of a drafter's own prefill. Length 0
wins when drafting does not pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from osd.config.settings import SpeculationConfig
from osd.speculation.arm import PLAIN, Arm, Choice
from osd.speculation.budget import RowBudget
from osd.speculation.cost import CostCurve, Costs

_WORTH_IT = 1.02
"""Speculation must promise this much more goodput than plain decoding, since estimates are noisy."""

_QUERY_STEP = 0.05
"""Weight of a finished query in the running averages of prompt and output lengths."""
_ROWS_A_PROBE = 8
"""One row in this many takes part in a probe."""
_PROBE_STEP = 0.5
"""Weight of the last probe in the running average of the time that probes add."""
_PROBE_SHARE = 0.01
"""Most of the time that probes may take, however long one is."""
_MOST_OF_A_PROBE = 10.0
"""A probe counts at most this many times its expected duration; otherwise one stall could stop probing for hours."""


class _Plan(NamedTuple):
    """The choice for all rows without a fixed length, except those that probe."""

    arm: Arm
    length: int


class GoodputPolicy:
    """Chooses for every row, in each round.

    Args:
        config: limits, and lengths that the operator fixed.
        verify: the costs of the target's passes, by (rows, tokens per row).
        arms: the drafters to choose among; without any, decoding is plain.
    """

    def __init__(self, config: SpeculationConfig, verify: CostCurve, arms: Sequence[Arm]) -> None:
        self.config, self.verify, self.arms = config, verify, arms
        self.chosen = 0
        """The longest speculation length of the last round."""
        self._plan: _Plan | None = None
        self._probed: Arm | None = None
        self._prompt_tokens = self._output_tokens = 0.0
        """Running averages over finished queries."""

    def use(self, costs: Costs) -> None:
        """Use other costs from now on, after target or drafters were replaced."""
        self.verify = costs.verify
        for arm, own in zip(self.arms, costs.arms, strict=True):
            arm.costs, arm.probe_ms = own, 0.0

    def choose(self, rows: Sequence[RowBudget], *, judged: Arm | None = None) -> list[Choice]:
        """The arm and the speculation length for each row.

        Args:
            rows: the decoding rows.
            judged: an arm that was just swapped; it must propose at least one token for rows without a fixed length, so
                that it can be compared with the version before.
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
        """The arm and length with the best goodput, if all rows used them."""
        plans = [self._best_length(arm, rows) for arm in arms]
        best = min(range(len(plans)), key=lambda number: plans[number][1])
        return _Plan(arms[best], plans[best][0])

    def _best_length(self, arm: Arm, rows: Sequence[RowBudget]) -> tuple[int, float]:
        """An arm's best length, and its expected milliseconds per token."""
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
        """The cost per output token of the drafter's prefill of a query, for queries like the last ones.

        Not the actual backlog: an arm that has processed all prompts but one would always consider that one cheap.
        """
        if not self._output_tokens:
            return 0.0
        return arm.costs.reading.ms(1, round(self._prompt_tokens)) / self._output_tokens

    def _round_ms(self, arm: Arm, length: int, num_rows: int) -> float:
        """The duration of a round in which an arm proposes `length` tokens for every row."""
        draft_ms = arm.costs.draft.ms(num_rows, length) if length else 0.0
        return self.verify.ms(num_rows, length + 1) + draft_ms

    def _due(self, usable: Sequence[Arm], plan: _Plan, num_rows: int) -> Arm | None:
        """The arm that proposes one token for a few rows in this round, though another is planned; usually None.

        Nothing is observed of an arm that is not chosen; without rare probes an improvement would never be noticed. A
        few rows suffice; catching up with all of them would cost several plain rounds.
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
        """The duration of a round as planned, without a probe."""
        return self._round_ms(plan.arm, plan.length, num_rows)

    def _expected_probe_ms(self, arm: Arm, plan: _Plan, num_rows: int) -> float:
        """The time that a probe adds to a round as planned."""
        width = max(plan.length, 1) + 1
        verify_ms = self.verify.ms(num_rows, width) - self.verify.ms(num_rows, plan.length + 1)
        return max(verify_ms + arm.costs.draft.ms(_num_probed(num_rows), 1), arm.probe_ms)

    def finished(self, prompt_tokens: int, output_tokens: int) -> None:
        """Update the averages by a finished query."""
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
        """Update acceptance and costs by one round.

        Args:
            rows: the decoding rows.
            proposed: the arm and the number of proposed tokens of each row.
            accepted: number of accepted tokens of each row.
            draft_ms: duration of drafting, of all arms together.
            verify_ms: duration of verifying.
        """
        self.verify.observe(len(rows), max(choice.length for choice in proposed) + 1, verify_ms)
        used = list(dict.fromkeys(choice.arm for choice in proposed if choice.arm is not None))
        for arm in used:
            lengths = [choice.length if choice.arm is arm else 0 for choice in proposed]
            arm.acceptance.observe([row.of(arm).acceptance for row in rows], lengths, accepted)
            drafted = rows[: _num_drafted(lengths)]
            if len(used) == 1:  # the time cannot be divided between several arms
                self._observe_draft(arm, drafted, max(lengths), draft_ms)
            for row in drafted:
                row.of(arm).num_read = row.num_tokens
        if self._probed in used and self._plan is not None:
            arm = self._probed
            took_ms = draft_ms + verify_ms - self._plan_ms(self._plan, len(rows))
            most_ms = _MOST_OF_A_PROBE * self._expected_probe_ms(arm, self._plan, len(rows))
            arm.probe_ms += _PROBE_STEP * (min(took_ms, most_ms) - arm.probe_ms)

    def _observe_draft(self, arm: Arm, rows: Sequence[RowBudget], length: int, took_ms: float) -> None:
        """If the drafter had to process more than the last round's tokens, update only the cost of that."""
        unread = [row.num_tokens - row.of(arm).num_read for row in rows]
        late = [num for num in unread if num > self.config.max_length + 1]
        if late:
            arm.costs.reading.observe(1, sum(late), took_ms - arm.costs.draft.ms(len(rows), length))
        else:
            arm.costs.draft.observe(len(rows), length, took_ms)


def _num_probed(num_rows: int) -> int:
    return -(-num_rows // _ROWS_A_PROBE)


def _num_drafted(lengths: Sequence[int]) -> int:
    """Number of rows up to the last one that proposes, which is what a drafter is given."""
    return max(row for row, length in enumerate(lengths) if length) + 1


def _within(choice: Choice, row: RowBudget) -> Choice:
    """A choice limited to what the row may propose, or the length that its client fixed."""
    length = min(choice.length if row.fixed is None else row.fixed, row.limit)
    return Choice(choice.arm, length) if length else PLAIN
