"""How far to speculate this round: the length with the best goodput.

SmartSpec (Liu et al. 2024, arXiv 2406.14066): maximise expected committed tokens per second, from each row's
acceptance history and the measured cost of drafting and verifying; here also of what a drafter reads before its first
proposal. Length 0 wins when drafting does not pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from osd.config.settings import SpeculationConfig
from osd.speculation.acceptance import AcceptanceModel, RowAcceptance
from osd.speculation.cost import Costs

_WORTH_IT = 1.02
"""Speculation must promise this much more goodput than plain decoding: estimates are noisy, drafting is not free."""

_QUERY_STEP = 0.05
"""By which a query changes what queries are taken for."""
_ROWS_A_PROBE = 8
"""One row of so many is probed."""
_PROBE_STEP = 0.5
_PROBE_SHARE = 0.01
"""Probes may take this share of the time, however much longer than a plain round one is."""
_MOST_OF_A_PROBE = 10.0
"""Times what it was expected to take: a machine that stood still meanwhile must not end probing for hours."""


@dataclass(slots=True)
class RowBudget:
    """What one row allows: its acceptance so far, the most it may propose, and the length its client fixed."""

    acceptance: RowAcceptance = field(default_factory=RowAcceptance)
    limit: int = 0
    fixed: int | None = None
    num_tokens: int = 0
    """Known, of which the drafter reads all before it proposes."""
    num_read: int = 0
    """By the drafter, when it was last asked."""


class GoodputPolicy:
    """Chooses every row's speculation length, each round."""

    def __init__(self, config: SpeculationConfig, costs: Costs) -> None:
        self.config = config
        self.verify, self.draft, self.reading = costs
        self.acceptance = AcceptanceModel(config.max_length)
        self.chosen = 0
        self._plain_rounds = 0
        self._is_probe = False
        self._probe_ms = 0.0
        """What the last probes took beyond a plain round: a drafter has much to read when it is asked again."""
        self._prompt_tokens = self._output_tokens = 0.0
        """Of the last queries that were answered."""

    def use(self, costs: Costs) -> None:
        """Go by other costs from here on: what rounds take has changed."""
        self.verify, self.draft, self.reading = costs
        self._probe_ms = 0.0

    def choose(self, rows: Sequence[RowBudget], *, at_least: int = 0) -> list[int]:
        """Speculation lengths by row.

        Args:
            rows: the decoding rows.
            at_least: a floor for rows whose length is free, used while a fresh swap is being judged.
        """
        if not self.config.enabled:
            return [0] * len(rows)
        length = self.config.fixed_length
        probed = 0
        if length is None:
            length = max(self._best_length(rows), at_least)
            self._plain_rounds = 0 if length else self._plain_rounds + 1
            # At length 0 nothing is observed: without a rare look, a drafter that improved would never be noticed.
            # A few rows are enough of a look; for all of them, catching up would cost several plain rounds.
            few = -(-len(rows) // _ROWS_A_PROBE)
            if self._plain_rounds >= max(self.config.probe_interval_rounds, self._rounds_for_a_probe(len(rows), few)):
                probed, self._plain_rounds = few, 0
        self._is_probe = probed > 0
        lengths = [1] * probed + [length] * (len(rows) - probed)
        self.chosen = max(lengths)
        return [
            min(free if row.fixed is None else row.fixed, row.limit) for row, free in zip(rows, lengths, strict=True)
        ]

    def _rounds_for_a_probe(self, num_rows: int, num_probed: int) -> float:
        """How many plain rounds make up for one in which `num_probed` rows try a token."""
        return self._expected_probe_ms(num_rows, num_probed) / self.verify.ms(num_rows, 1) / _PROBE_SHARE

    def _expected_probe_ms(self, num_rows: int, num_probed: int) -> float:
        """What a probe takes beyond a plain round."""
        verify_ms = self.verify.ms(num_rows, 2) - self.verify.ms(num_rows, 1)
        return max(verify_ms + self.draft.ms(num_probed, 1), self._probe_ms)

    def _best_length(self, rows: Sequence[RowBudget]) -> int:
        accepted_by_depth = self.acceptance.expected([row.acceptance for row in rows], [row.limit for row in rows])
        best_length, best_ms = 0, self.verify.ms(len(rows), 1) / len(rows) / _WORTH_IT
        committed, reading_ms = float(len(rows)), self._reading_ms()
        for length, accepted in enumerate(accepted_by_depth, start=1):
            committed += accepted
            round_ms = self.verify.ms(len(rows), length + 1) + self.draft.ms(len(rows), length)
            token_ms = round_ms / committed + reading_ms
            if token_ms < best_ms:
                best_length, best_ms = length, token_ms
        return best_length

    def _reading_ms(self) -> float:
        """What it adds to each token that the drafter reads a query's prompt first, as the last queries were.

        Not what there is to read now: whoever has read all but one row's prompt would always think that one cheap.
        """
        if not self._output_tokens:
            return 0.0
        return self.reading.ms(1, round(self._prompt_tokens)) / self._output_tokens

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
        proposed: Sequence[int],
        accepted: Sequence[int],
        *,
        draft_ms: float,
        verify_ms: float,
    ) -> None:
        """Learn from one round: verdicts by row, and what drafting and verifying took."""
        self.verify.observe(len(rows), max(proposed) + 1, verify_ms)
        if max(proposed):
            self.acceptance.observe([row.acceptance for row in rows], proposed, accepted)
            num_drafted = max(row for row, length in enumerate(proposed) if length) + 1
            self._observe_draft(rows[:num_drafted], max(proposed), draft_ms)
            if self._is_probe:
                took_ms = draft_ms + verify_ms - self.verify.ms(len(rows), 1)
                most_ms = _MOST_OF_A_PROBE * self._expected_probe_ms(len(rows), num_drafted)
                self._probe_ms += _PROBE_STEP * (min(took_ms, most_ms) - self._probe_ms)

    def _observe_draft(self, rows: Sequence[RowBudget], length: int, took_ms: float) -> None:
        """Of a round in which something was read first, only that is learnt, or drafting would seem dear."""
        unread = [row.num_tokens - row.num_read for row in rows]
        late = [num for num in unread if num > self.config.max_length + 1]
        if late:
            self.reading.observe(1, sum(late), took_ms - self.draft.ms(len(rows), length))
        else:
            self.draft.observe(len(rows), length, took_ms)
        for row in rows:
            row.num_read = row.num_tokens
