"""What restricts an answer's tokens, as a grammar does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class RowConstraint(Protocol):
    """Which tokens one query may go on with.

    It moves on by committed tokens only, so nothing is ever taken back: of proposed tokens, which may be rejected, it
    is merely told.
    """

    def allowed(self, proposed: Sequence[int]) -> NDArray[np.uint32]:
        """Bits of the tokens that may come next, `[K + 1, ceil(V / 32)]` for K proposed ones and a vocabulary of V.

        Row i is for the position after the committed tokens and the first i proposed ones. Token t is bit `t % 32` of
        word `t // 32`. In every row at least one token is allowed, also after a proposed token that is not (which will
        be rejected, so that it does not matter which).
        """
        ...

    def advance(self, tokens: Sequence[int]) -> None:
        """These were committed."""
        ...
