"""Why something failed, in one line."""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """The first line of an error's message that says anything; the name of its type if there is none.

    Example: `reason(KeyError())` is `"KeyError"`
    """
    return next((line.strip() for line in str(error).split("\n") if line.strip()), type(error).__name__)
