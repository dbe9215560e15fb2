"""Errors whose message is meant for a person: what is wrong, and what to do."""

from __future__ import annotations


class OsdError(Exception):
    """An error whose message is meant for the person who can mend it: what is wrong, and what to do."""


class QueueFullError(OsdError):
    """The engine's waiting queue is full; serving answers 429 with Retry-After."""


class PromptTooLongError(OsdError):
    """The prompt leaves no room for a single new token in the target's context."""


class EngineUnavailableError(OsdError):
    """The engine is restarting or gone; serving answers 503."""


class WeightsRefusedError(OsdError):
    """A weight version is torn, foreign, non-finite or of another shape, and was not loaded."""


class UnknownVersionError(WeightsRefusedError):
    """There is no weight version of this number."""


class OutcomeSinkError(OsdError):
    """The outcome stream cannot take or give records now (Redis down, full or refusing)."""
