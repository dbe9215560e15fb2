"""How much training the traffic is worth: in proportion to it, so that an idle machine does not train for ever."""

from __future__ import annotations


class TrainingBudget:
    """Counts output tokens that may still be trained on.

    Args:
        passes: how often each new output token is trained on, on average.
    """

    def __init__(self, passes: float) -> None:
        self._passes = passes
        self.left_tokens = 0.0

    def earn(self, num_tokens: int) -> None:
        """New output tokens have come in."""
        self.left_tokens += self._passes * num_tokens

    def spend(self, num_tokens: int) -> None:
        """These were trained on. The last step may take more than is left, which later tokens make up for."""
        self.left_tokens -= num_tokens

    @property
    def is_spent(self) -> bool:
        """Whether training has to wait for new traffic."""
        return self.left_tokens <= 0.0
