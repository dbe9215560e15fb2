"""Finds out when an answer repeats itself."""

from __future__ import annotations

from osd.records.asked.limits import RepetitionLimit


class Repeats:
    """Reads an answer token by token, and tells when its end is one pattern several times in a row.

    A pattern of n tokens has occurred r times in a row exactly if each of the last n (r - 1) tokens equals the one n
    tokens before it. So it is enough to count, for each n, for how many tokens that has been true without a break.

    Args:
        limit: which patterns count, and how often.
    """

    def __init__(self, limit: RepetitionLimit) -> None:
        self._limit = limit
        self._tokens: list[int] = []
        self._equal = dict.fromkeys(range(limit.min_tokens, limit.max_tokens + 1), 0)
        """Size of a pattern to the number of tokens in a row that equal the one so many tokens before."""
        self.found = False

    def push(self, token: int) -> bool:
        """Read the next token; returns whether the answer now ends in a repetition."""
        tokens = self._tokens
        tokens.append(token)
        for size in self._equal:
            if size >= len(tokens):
                break
            self._equal[size] = self._equal[size] + 1 if tokens[-1 - size] == token else 0
            if self._equal[size] >= size * (self._limit.num_repeats - 1):
                self.found = True
        return self.found
