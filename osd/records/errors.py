"""Errors whose message is for the user: what is wrong, and how to fix it."""

from __future__ import annotations


class OsdError(Exception):
    """An error whose message tells the user what is wrong and how to fix it."""


class QueueFullError(OsdError):
    """The engine's waiting queue is full; serving answers 429 with Retry-After."""


class PromptTooLongError(OsdError):
    """The prompt leaves no room for a new token in the target's context."""


class ConstraintRefusedError(OsdError):
    """A constraint on an answer cannot be applied: the grammar is wrong, too large, or uses what is not supported.

    Args:
        message: for the user; names the field.
        field: the request's field that holds the constraint.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class EngineUnavailableError(OsdError):
    """The engine is restarting or gone; serving answers 503 with Retry-After."""


class WeightsRefusedError(OsdError):
    """A drafter version was not loaded: it is damaged, holds NaN or infinity, or does not fit."""


class UnknownVersionError(WeightsRefusedError):
    """There is no drafter version with this number."""


class OutcomeSinkError(OsdError):
    """The outcome stream cannot take or return outcomes now (Redis is unreachable, full or refuses)."""


def reason(error: BaseException) -> str:
    """The first non-empty line of an error's message, or else the name of its type.

    transformers' refusal to run a model's own Python code has several lines; it becomes one that names our setting.

    Example: `reason(KeyError())` is `"KeyError"`
    """
    if "trust_remote_code=True" in str(error):
        return "it needs Python code that it brings along; give --trust-remote-code if you trust it"
    return next((line.strip() for line in str(error).split("\n") if line.strip()), type(error).__name__)
