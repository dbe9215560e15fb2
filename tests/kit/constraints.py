"""Constraints on an answer's tokens, by arithmetic on their ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.kit.engine_kit import VOCAB_TOKENS


def bits_of(allowed_QV: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """As `RowConstraint.allowed` returns them."""
    padded_QV = np.pad(allowed_QV, ((0, 0), (0, -allowed_QV.shape[1] % 32)))
    return np.packbits(padded_QV, axis=1, bitorder="little").view(np.uint32)


class EvenTokens:
    """Only even token ids."""

    error = None

    def __init__(self, vocab_tokens: int = VOCAB_TOKENS) -> None:
        self._bits_1W = bits_of((np.arange(vocab_tokens) % 2 == 0)[None])

    def allowed(self, proposed: Sequence[int]) -> NDArray[np.uint32]:
        return np.repeat(self._bits_1W, len(proposed) + 1, axis=0)

    def advance(self, tokens: Sequence[int]) -> None: ...

    def expected(self) -> Sequence[int]:
        return ()


class NoThirds:
    """A token's id and that of the one before it never add up to a multiple of three: each choice restricts the next.

    Before the first token stands 0.
    """

    error = None

    def __init__(self) -> None:
        self._last = 0

    def allowed(self, proposed: Sequence[int]) -> NDArray[np.uint32]:
        return _BITS_AFTER[[self._last, *proposed]]

    def advance(self, tokens: Sequence[int]) -> None:
        if tokens:
            self._last = tokens[-1]

    def expected(self) -> Sequence[int]:
        return ()


def allowed_after(last_N: NDArray[np.int64]) -> NDArray[np.bool_]:
    """What `NoThirds` allows after each of these tokens, `[N, V]`."""
    allowed_NV: NDArray[np.bool_] = (last_N[:, None] + np.arange(VOCAB_TOKENS)) % 3 != 0
    return allowed_NV


_BITS_AFTER = bits_of(allowed_after(np.arange(VOCAB_TOKENS)))
