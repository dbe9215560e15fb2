"""One query's place in its grammar."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from llguidance import LLMatcher

_ALL = np.uint32(0xFFFFFFFF)


class RowGrammar:
    """See `osd.ports.constraint.RowConstraint`.

    Args:
        matcher: at the grammar's beginning; of this query alone.
        vocab_tokens: V.
        eos_ids: tokens that end an answer.
        spell: the tokens of a text; they may be divided otherwise where more text follows.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocab_tokens: int,
        eos_ids: Collection[int],
        spell: Callable[[bytes], Sequence[int]] = lambda text: (),
    ) -> None:
        self._matcher, self._num_words, self._eos_ids = matcher, num_words(vocab_tokens), eos_ids
        self._spell = spell
        self._known: tuple[tuple[int, ...], NDArray[np.uint32]] | None = None
        """The proposed tokens that were asked about last, and the answer: a round asks before and after it verifies."""

    @property
    def error(self) -> str | None:
        """See `RowConstraint`."""
        return self._matcher.get_error() or None

    def allowed(self, proposed: Sequence[int]) -> NDArray[np.uint32]:
        """See `RowConstraint`. The matcher goes along the proposed tokens, and back."""
        asked = tuple(proposed)
        if self._known is None or self._known[0][: len(asked)] != asked:
            self._known = asked, self._find(asked)
        return self._known[1][: len(asked) + 1]

    def _find(self, proposed: Sequence[int]) -> NDArray[np.uint32]:
        matcher = self._matcher
        bits_QW = np.full((len(proposed) + 1, self._num_words), _ALL)
        num_consumed = 0
        for bits_W, token in zip(bits_QW, [*proposed, -1], strict=True):
            if matcher.is_error():
                break
            fill_mask(matcher, bits_W)
            if token < 0 or token in self._eos_ids or not _holds(bits_W, token):
                break  # nothing that follows is committed
            num_consumed += matcher.consume_token(token)
        if matcher.is_error():
            bits_QW[:] = _ALL
        else:
            matcher.rollback(num_consumed)
        return bits_QW

    def advance(self, tokens: Sequence[int]) -> None:
        """See `RowConstraint`."""
        self._known = None
        self._matcher.consume_tokens(list(tokens))

    def expected(self) -> Sequence[int]:
        """See `RowConstraint`. The last token is left out, since it may go on with what follows."""
        text = self._matcher.compute_ff_bytes()
        return self._spell(text)[:-1] if text else ()


def num_words(vocab_tokens: int) -> int:
    """Number of 32-bit words of a mask."""
    return -(-vocab_tokens // 32)


def fill_mask(matcher: LLMatcher, bits_W: NDArray[np.uint32]) -> None:
    """Write the mask of the next tokens; `bits_W` is contiguous."""
    matcher.unsafe_compute_mask_ptr(bits_W.ctypes.data, bits_W.nbytes)


def _holds(bits_W: NDArray[np.uint32], token: int) -> bool:
    return bool(bits_W[token >> 5] >> np.uint32(token & 31) & np.uint32(1))
