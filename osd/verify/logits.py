"""What verification asks of the logits of a pass, whichever back end computed them.

Shapes: B rows, Q positions, S sampled rows, N positions looked at, V vocabulary, K most likely tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from osd.machine.arrays import Numbers
from osd.records.proposal import Proposal
from osd.records.rules import AcceptRule
from osd.verify.shaping import Shape


class SampledRows(NamedTuple):
    """The sampled rows of a pass, and what their proposals are judged by; S elements each."""

    rows: Sequence[int]
    """Which rows of the logits and of the proposal."""
    shapes: Sequence[Shape]
    """Of the target's distributions."""
    lengths: Sequence[int]
    """How many tokens each row proposes."""
    uniform_SQ: Sequence[Sequence[float]]
    """Uniform draws in (0, 1): a row's `length` acceptance tests, then the draw of its last token."""
    proposal: Proposal | None
    """Of all rows of the pass; None where none proposes."""
    rule: AcceptRule


class RankedTokens(NamedTuple):
    """Log-probabilities at N positions: of the tokens chosen there, and of the K most likely."""

    chosen_N: Numbers
    ids_NK: Numbers
    """int32, most likely first."""
    logprobs_NK: Numbers
    wait: Callable[[], None]
    """To be called before the rest is read: it may still be on its way from the device."""


class Logits(Protocol):
    """The logits of a pass, `[B, Q, V]`, where the back end has them."""

    num_positions: int
    """Q."""
    vocab_tokens: int
    """V."""

    @property
    def tensor_BQV(self) -> Tensor:  # noqa: N802 - its shape, as everywhere
        """The logits themselves; writing to them changes all later answers but `best_BQ`."""
        ...

    @property
    def best_BQ(self) -> Numbers:  # noqa: N802 - as above
        """The index of each greatest logit, int64; of equal ones, the first."""
        ...

    @property
    def is_finite_BQ(self) -> Numbers:  # noqa: N802 - as above
        """Whether each position's greatest logit is neither NaN nor infinite, bool.

        A hidden state that is not finite makes all of its logits NaN or infinite, so the greatest tells of every one.
        """
        ...

    def judge(self, sampled: SampledRows) -> Numbers:
        """How many proposed tokens each sampled row keeps, and the token that follows them, int64 `[S, 2]`.

        The reference of both rules is `osd.verify.token_rule` and `osd.verify.block_rule`.
        """
        ...

    def rank(self, places: Sequence[int], chosen: Sequence[int], top_k: int) -> RankedTokens:
        """Log-probabilities, before temperature and filters.

        Args:
            places: N positions of the flattened `[B * Q]`.
            chosen: a token of each.
            top_k: how many of the most likely, at most V.
        """
        ...

    def replaced(self, logits_BQV: Tensor) -> Logits:
        """Other values in the place of these: the logits with penalties, in float32."""
        ...

    def replace_first(self, row: int, other: Logits) -> None:
        """Take the first position of another pass over this row alone in place of this pass's."""
        ...
