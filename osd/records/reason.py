"""The cause of an exception in one line."""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """The first non-empty line of an error's message, or else the name of its type.

    Example: `reason(KeyError())` is `"KeyError"`
    """
    return next((line.strip() for line in str(error).split("\n") if line.strip()), type(error).__name__)
