"""How fast to train, by what the gate says of the candidates."""

from __future__ import annotations

from typing import Any

from trainer.gate.gate import GateDecision

_LEAST_RATE = 1 / 16
"""Lowest share of the configured learning rate, however many candidates in a row are worse."""
_LEAST_WORTH = 1 / 16
"""However often candidates gain nothing: without any training, nobody would notice that traffic changed."""


class Pace:
    """The share of the learning rate in use, what training is worth, and when the gate decides next.

    A well-trained drafter loses more by large steps on little traffic than it gains; an untrained one needs them. So
    the rate is halved after a candidate that is worse, and doubled after one that is published.

    Args:
        gate_every_steps: between two decisions of the gate.
    """

    def __init__(self, gate_every_steps: int) -> None:
        self._gate_every_steps = gate_every_steps
        self.rate = 1.0
        """Share of the configured learning rate in use now."""
        self.worth = 1.0
        """Share of what training may cost serving that it is worth now; half after a candidate that gains nothing."""
        self.steps_at_gate = 0
        """Steps when the gate last decided, or when training began anew."""

    def is_gate_due(self, steps: int, num_held_out: int, *, is_last: bool) -> bool:
        """Whether the gate should decide now.

        Measuring ten records with both versions takes as long as one or two steps, so with many it decides less often.

        Args:
            steps: made so far.
            num_held_out: records that a decision takes into account.
            is_last: no more steps will follow for now, so it does not wait for more of them than the configured number.
        """
        least = self._gate_every_steps if is_last else max(self._gate_every_steps, num_held_out // 3)
        return steps - self.steps_at_gate >= least

    def after(self, decision: GateDecision) -> None:
        """Take the gate's decision into account."""
        if decision.published:
            self.rate, self.worth = min(2 * self.rate, 1.0), 1.0
            return
        if not decision.is_promising:  # otherwise more training or more evidence may show a gain
            self.worth = max(self.worth / 2, _LEAST_WORTH)
        if decision.worse:
            self.rate = max(self.rate / 2, _LEAST_RATE)

    def start_anew(self) -> None:
        """The traffic has changed."""
        self.rate = self.worth = 1.0

    def state(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {"steps_at_gate": self.steps_at_gate, "rate": self.rate, "worth": self.worth}

    def restore(self, state: dict[str, Any]) -> None:
        """What `state` returned."""
        self.steps_at_gate = state["steps_at_gate"]
        self.rate, self.worth = state.get("rate", 1.0), state.get("worth", 1.0)
