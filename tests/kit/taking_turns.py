"""A policy by which neighbouring rows are drafted for by different arms."""

from __future__ import annotations

from collections.abc import Sequence

from osd.engine.engine import Engine
from osd.speculation.arm import PLAIN, Arm, Choice
from osd.speculation.budget import RowBudget
from osd.speculation.length import GoodputPolicy


class TakingTurns(GoodputPolicy):
    """Row b's tokens are proposed by arm b modulo their number, as many as its client or the configuration fixed."""

    def choose(self, rows: Sequence[RowBudget], *, judged: Arm | None = None) -> list[Choice]:
        lengths = [min(self._wanted(row), row.limit) for row in rows]
        return [Choice(self.arms[b % len(self.arms)], length) if length else PLAIN for b, length in enumerate(lengths)]

    def _wanted(self, row: RowBudget) -> int:
        return row.fixed if row.fixed is not None else self.config.fixed_length or 0


def take_turns(engine: Engine) -> Engine:
    """The engine, with that policy."""
    engine.policy = TakingTurns(engine.policy.config, engine.policy.verify, engine.policy.arms)
    return engine
