"""Chooses the arm and the speculation length for each row by goodput.

SmartSpec (Liu et al. 2024, arXiv 2406.14066): maximise expected committed tokens per second, from each row's acceptance
history and the measured costs of drafting and verifying; here also from the cost of a drafter's own prefill. Length 0
wins when drafting does not pay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from osd.config.drafter import SpeculationConfig
from osd.speculation.arm import PLAIN, Arm, Choice
from osd.speculation.budget import RowBudget
from osd.speculation.cost import CostCurve, Costs
from osd.speculation.domain_arms import DomainArms
from osd.speculation.lookup_arm import LookupArm

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

_TRUST = 1 / 1.1
"""What a token that the lookup promises is worth: of two noisy estimates, the larger tends to be too large."""
_TRUST_IF_PREFERRED = 1 / 0.8
"""The same for a row that prefers the lookup."""
_CLOSE = 1.0
"""The lookup is chosen closely if it promises less than so many tokens more than the drafter."""
_CLOSE_CHOICES = 48
"""After so many close choices, a round without the lookup shows what the drafter would have done."""


class _Plan(NamedTuple):
    """The choice for all rows without a fixed length, except those that probe."""

    arm: Arm | None
    """Proposes for the rows that the lookup does not propose for; in a row of a domain with an arm of its own, that."""
    length: int
    """Number of tokens that the arm proposes for a row."""
    width: int
    """Most tokens that the lookup proposes for a row."""


class GoodputPolicy:
    """Chooses for every row, in each round.

    Args:
        config: limits, and lengths that the operator fixed.
        verify: the costs of the target's passes, by (rows, tokens per row).
        arms: the drafters to choose among; without any, and without a lookup, decoding is plain.
        lookup: proposes for a row instead, where what it offers promises more; its offers cost next to nothing.
        own: the arms of domains, each in place of the arm that is its base.
    """

    def __init__(
        self,
        config: SpeculationConfig,
        verify: CostCurve,
        arms: Sequence[Arm],
        lookup: LookupArm | None = None,
        own: DomainArms | None = None,
    ) -> None:
        self.config, self.verify, self.arms, self.lookup = config, verify, arms, lookup
        self.own = DomainArms(0) if own is None else own
        self.chosen = 0
        """The longest speculation length of the last round."""
        self._plan: _Plan | None = None
        self._probed: Arm | None = None
        self._num_close = 0
        """Choices of the lookup since the last round without it where a drafter promised nearly as much."""
        self._prompt_tokens = self._output_tokens = 0.0
        """Running averages over finished queries."""

    @property
    def all_arms(self) -> list[Arm]:
        """The arms to choose among, then those of domains by name: an order that no round changes."""
        return [*self.arms, *sorted(self.own, key=lambda arm: arm.name)]

    def use(self, costs: Costs) -> None:
        """Use other costs from now on, after target or drafters were replaced."""
        self.verify = costs.verify
        for arm, own in zip(self.all_arms, costs.arms, strict=True):
            arm.costs, arm.probe_ms = own, 0.0

    def choose(self, rows: Sequence[RowBudget], *, judged: Arm | None = None) -> list[Choice]:
        """The arm and the speculation length for each row.

        Args:
            rows: the decoding rows, with what the lookup offers to each.
            judged: an arm that was just swapped; it must propose at least one token for its rows without a fixed
                length, so that it can be compared with the version before. Rows that the lookup proposes for are
                excepted, as they were before the swap.
        """
        usable = [arm for arm in self.arms if not arm.is_broken]
        if not (self.config.enabled and (usable or self.lookup)):
            return [PLAIN] * len(rows)
        if judged is not None and judged.base is not None:
            judged = judged.base
        arms = [judged] if judged in usable else usable
        offered = self._offered(rows)
        plan = self._best(arms, rows, offered)
        if self._num_close >= _CLOSE_CHOICES and any(row.promised >= 1.0 for row in rows):
            without = self._best(arms, rows, None)
            plan, self._num_close = (without, 0) if without.length else (plan, self._num_close)
        if self.config.fixed_length is not None:
            plan = plan._replace(length=self.config.fixed_length, width=self.config.fixed_length)
        elif plan.arm is judged and judged is not None:
            plan = plan._replace(length=max(plan.length, 1))
        found = [self._looked_up(plan, row) for row in rows]
        free = [number for number, choice in enumerate(found) if choice is None]
        probe = self._due(usable, plan, rows, len(free)) if self.config.fixed_length is None else None
        probed = set() if probe is None else set(free[: _num_probed(len(free))])
        self._plan, self._probed = plan, probe
        wanted = [
            choice or (Choice(probe, 1) if number in probed else Choice(plan.arm, plan.length))
            for number, choice in enumerate(found)
        ]
        self.chosen = max(choice.length if choice.arm else 0 for choice in wanted)
        return [_within(choice, row) for choice, row in zip(wanted, rows, strict=True)]

    def _best(self, arms: Sequence[Arm], rows: Sequence[RowBudget], offered: Sequence[Sequence[float]] | None) -> _Plan:
        """The plan with the best goodput, if all rows followed it; without the lookup if `offered` is None."""
        best, best_ms = _Plan(arms[0] if arms else None, 0, 0), self.verify.ms(len(rows), 1) / len(rows) / _WORTH_IT
        accepted = [[0.0] * (self.config.max_length + 1)] * len(rows)
        if offered is not None:
            for width in range(1, self.config.max_length + 1):
                token_ms = self.verify.ms(len(rows), width + 1) / _num_committed(accepted, 0, offered, width)
                if token_ms < best_ms:
                    best, best_ms = best._replace(width=width), token_ms
        for arm in arms:
            accepted, num_drafted = _accepted(rows, arm), _num_drafted_by(rows, arm)
            reading_ms = self._reading_ms(arm)
            for length in range(1, self.config.max_length + 1):
                draft_ms = _draft_ms(num_drafted, length)
                for width in range(length, (length if offered is None else self.config.max_length) + 1):
                    committed = _num_committed(accepted, length, offered, width)
                    token_ms = (self.verify.ms(len(rows), width + 1) + draft_ms) / committed + reading_ms
                    if token_ms < best_ms:
                        best, best_ms = _Plan(arm, length, 0 if offered is None else width), token_ms
        return best

    def _offered(self, rows: Sequence[RowBudget]) -> list[list[float]] | None:
        """For each row, what 0, 1, … tokens of the lookup's offer are worth, in accepted tokens of a drafter.

        None if it offers nothing to any row. Each row's `promised` is set.
        """
        lookup = self.lookup
        for row in rows:
            row.promised = 0.0
        if lookup is None or lookup.is_broken or not any(row.offer.token_ids for row in rows):
            return None
        longest, offered = self.config.max_length, []
        for row in rows:
            found = lookup.expected(row.offer, row.of(lookup).acceptance, min(row.limit, longest))
            row.promised = found[-1]
            offered.append(_extended([one * _trust(row) for one in found], longest))
        return offered

    def _looked_up(self, plan: _Plan, row: RowBudget) -> Choice | None:
        """The lookup's proposal for a row, if it promises more than the plan's arm; otherwise None."""
        lookup = self.lookup
        if lookup is None or lookup.is_broken or not row.offer.token_ids:
            return None
        length = plan.length if row.fixed is None else row.fixed
        length, width = (min(one, row.limit) for one in (length, plan.width if row.fixed is None else row.fixed))
        is_fixed = row.fixed is not None or self.config.fixed_length is not None
        num_tokens = min(width, len(row.offer.token_ids))
        if not num_tokens or (is_fixed and num_tokens < width):
            return None
        expected = lookup.expected(row.offer, row.of(lookup).acceptance, num_tokens)[-1]
        if plan.arm is not None:
            [accepted] = _accepted([row], plan.arm)
            if expected * _trust(row) <= accepted[min(length, self.config.max_length)]:
                return None
            self._num_close += row.promised >= 1.0 and expected - accepted[-1] < _CLOSE
        return Choice(lookup, num_tokens)

    def _reading_ms(self, arm: Arm) -> float:
        """The cost per output token of the drafter's prefill of a query, for queries like the last ones.

        Not the actual backlog: an arm that has processed all prompts but one would always consider that one cheap.
        """
        if not self._output_tokens:
            return 0.0
        return arm.costs.reading.ms(1, round(self._prompt_tokens)) / self._output_tokens

    def _due(self, usable: Sequence[Arm], plan: _Plan, rows: Sequence[RowBudget], num_free: int) -> Arm | None:
        """The arm that proposes one token for a few rows in this round, though another is planned; usually None.

        Nothing is observed of an arm that is not chosen; without rare probes an improvement would never be noticed. A
        few rows suffice; catching up with all of them would cost several plain rounds. Rows that the lookup proposes
        for are not probed: they would lose its tokens.
        """
        for arm in usable:
            arm.idle_rounds = 0 if plan.length and arm is plan.arm else arm.idle_rounds + 1
        if not (usable and num_free):
            return None
        due = max(usable, key=lambda arm: arm.idle_rounds)
        if due.idle_rounds < self.config.probe_interval_rounds:
            return None
        num_worth = self._expected_probe_ms(due, plan, len(rows)) / self._plan_ms(plan, rows) / _PROBE_SHARE
        if due.idle_rounds < num_worth:
            return None
        due.idle_rounds = 0
        return due

    def _plan_ms(self, plan: _Plan, rows: Sequence[RowBudget]) -> float:
        """The duration of a round as planned, without a probe."""
        draft_ms = 0.0
        if plan.arm is not None and plan.length:
            draft_ms = _draft_ms(_num_drafted_by(rows, plan.arm), plan.length)
        return self.verify.ms(len(rows), max(plan.length, plan.width) + 1) + draft_ms

    def _expected_probe_ms(self, arm: Arm, plan: _Plan, num_rows: int) -> float:
        """The time that a probe adds to a round as planned."""
        planned = max(plan.length, plan.width)
        verify_ms = self.verify.ms(num_rows, max(planned, 1) + 1) - self.verify.ms(num_rows, planned + 1)
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
        num_verified: int | None = None,
        *,
        draft_ms: float,
        verify_ms: float,
    ) -> None:
        """Update acceptance and costs by one round.

        Args:
            rows: the decoding rows.
            proposed: the arm and the number of proposed tokens of each row.
            accepted: number of accepted tokens of each row.
            num_verified: most tokens of a row that were verified, if fewer than were proposed.
            draft_ms: duration of drafting, of all arms together.
            verify_ms: duration of verifying.
        """
        if num_verified is None:
            num_verified = max(choice.length for choice in proposed)
        self.verify.observe(len(rows), num_verified + 1, verify_ms)
        used = {choice.arm: [0] * len(rows) for choice in proposed if isinstance(choice.arm, Arm)}
        for arm, lengths in used.items():
            lengths[:] = [choice.length if choice.arm is arm else 0 for choice in proposed]
            kinds = [arm.kind(row.promised) for row in rows]
            arm.acceptance.observe([row.of(arm).acceptance for row in rows], lengths, accepted, kinds)
        self._observe_drafts(used, rows, draft_ms)
        if self._plan is not None and self._probed in {arm.base or arm for arm in used}:
            arm = self._probed
            took_ms = draft_ms + verify_ms - self._plan_ms(self._plan, rows)
            most_ms = _MOST_OF_A_PROBE * self._expected_probe_ms(arm, self._plan, len(rows))
            arm.probe_ms += _PROBE_STEP * (min(took_ms, most_ms) - arm.probe_ms)

    def _observe_drafts(self, used: Mapping[Arm, Sequence[int]], rows: Sequence[RowBudget], took_ms: float) -> None:
        """Update the costs of the drafters that proposed, which together took `took_ms`.

        Between drafters of one shape, such as those of domains, it is divided as their expected costs are; between
        others it cannot be. If one had to process more than the last round's tokens, only the cost of that is updated,
        and only if it was alone.

        Args:
            used: each drafter's speculation lengths by row.
            rows: the decoding rows.
            took_ms: duration of drafting.
        """
        expected_ms, num_late = {}, {}
        for arm, lengths in used.items():
            drafted = rows[: _num_drafted(lengths)]
            expected_ms[arm] = arm.costs.draft.ms(len(drafted), max(lengths))
            unread = [row.num_tokens - row.of(arm).num_read for row in drafted]
            num_late[arm] = sum(num for num in unread if num > self.config.max_length + 1)
            for row in drafted:
                row.of(arm).num_read = row.num_tokens
        total_ms, is_late = sum(expected_ms.values()), any(num_late.values())
        if len({arm.base or arm for arm in used}) > 1:
            return
        for arm, lengths in used.items():
            if not is_late:
                share_ms = took_ms * expected_ms[arm] / total_ms
                arm.costs.draft.observe(_num_drafted(lengths), max(lengths), share_ms)
            elif len(used) == 1:
                arm.costs.reading.observe(1, num_late[arm], took_ms - expected_ms[arm])


def _num_probed(num_rows: int) -> int:
    return -(-num_rows // _ROWS_A_PROBE)


def _num_drafted(lengths: Sequence[int]) -> int:
    """Number of rows up to the last one that proposes, which is what a drafter is given."""
    return max(row for row, length in enumerate(lengths) if length) + 1


def _accepted(rows: Sequence[RowBudget], chosen: Arm) -> list[list[float]]:
    """By row, the expected accepted tokens at speculation lengths 0, 1, … if `chosen` is chosen for all rows."""
    found: list[list[float]] = [[]] * len(rows)
    for arm in _num_drafted_by(rows, chosen):
        own = [number for number, row in enumerate(rows) if row.arm(chosen) is arm]
        expected = arm.acceptance.expected([rows[n].factor(arm) for n in own], [rows[n].limit for n in own])
        for number, accepted in zip(own, expected, strict=True):
            found[number] = accepted
    return found


def _num_drafted_by(rows: Sequence[RowBudget], chosen: Arm) -> dict[Arm, int]:
    """The drafters in use if `chosen` is chosen for all rows, and how many rows each is given: those up to its last."""
    return {row.arm(chosen): number for number, row in enumerate(rows, start=1)}


def _draft_ms(num_drafted: Mapping[Arm, int], length: int) -> float:
    """The time in which drafters propose for so many rows each."""
    return sum(arm.costs.draft.ms(num_rows, length) for arm, num_rows in num_drafted.items())


def _num_committed(
    accepted: Sequence[Sequence[float]], length: int, offered: Sequence[Sequence[float]] | None, width: int
) -> float:
    """Expected tokens that all rows commit in a round.

    Args:
        accepted: by row and number of tokens that the arm proposes.
        length: that number.
        offered: by row and number of tokens that the lookup proposes; a row uses what promises more.
        width: that number.
    """
    if offered is None:
        return len(accepted) + sum(row[length] for row in accepted)
    return len(accepted) + sum(max(row[length], found[width]) for row, found in zip(accepted, offered, strict=True))


def _trust(row: RowBudget) -> float:
    """What a token that the lookup promises is worth, in tokens that a drafter promises."""
    return _TRUST_IF_PREFERRED if row.prefers_lookup else _TRUST


def _extended(values: list[float], last: int) -> list[float]:
    """With its last value repeated up to index `last`."""
    return values + values[-1:] * (last + 1 - len(values))


def _within(choice: Choice, row: RowBudget) -> Choice:
    """A choice limited to what the row may propose, or the length that its client fixed."""
    length = min(choice.length if row.fixed is None else row.fixed, row.limit)
    arm = row.arm(choice.arm) if isinstance(choice.arm, Arm) else choice.arm
    return Choice(arm, length) if length and arm else PLAIN
