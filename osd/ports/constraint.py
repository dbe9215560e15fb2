"""The Protocol of constraints on an answer's tokens, such as a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class RowConstraint(Protocol):
    """Says which tokens one query may continue with.

    Its state advances by committed tokens only and is never rolled back. Proposed tokens, which may be rejected, are
    passed to `allowed` without changing it.
    """

    def allowed(self, proposed: Sequence[int]) -> NDArray[np.uint32]:
        """Bit masks of the allowed next tokens, `[K + 1, ceil(V / 32)]` for K proposed tokens and vocabulary size V.

        Row i is for the position after the committed tokens and the first i proposed ones. Token t is bit `t % 32` of
        word `t // 32`. Every row must allow at least one token. Rows after a proposed token that is itself not allowed
        do not matter, since that token will be rejected.
        """
        ...

    def advance(self, tokens: Sequence[int]) -> None:
        """Advance by committed tokens."""
        ...

    def expected(self) -> Sequence[int]:
        """Tokens that are worth proposing, since they spell the only text that may follow; empty: there is none.

        Another division of that text into tokens may be allowed, so the target may choose otherwise.
        """
        ...

    @property
    def error(self) -> str | None:
        """Why the constraint can no longer be followed, which ends the query with this error; None: it can.

        From the failure on, `allowed` allows every token.
        """
        ...
