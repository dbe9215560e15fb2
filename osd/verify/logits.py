"""What verification asks of a pass's logits; each back end implements it.

Shapes: B rows, Q positions, S sampled rows, N places, V vocabulary, K most likely tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from osd.machine.arrays import Numbers
from osd.records.proposal import Proposal
from osd.records.rules import AcceptRule
from osd.verify.shaping import RowShaping


class SampledRows(NamedTuple):
    """The sampled rows of a pass, and what is needed to verify their proposals; S elements each."""

    rows: Sequence[int]
    """Indices of the rows, in the logits and in the proposal."""
    shapes: Sequence[RowShaping]
    """Shaping parameters of the target's distributions."""
    lengths: Sequence[int]
    """Number of tokens that each row proposes."""
    uniform_SQ: Sequence[Sequence[float]]
    """Uniform draws in (0, 1): a row's `length` acceptance tests, then the draw of the token that follows."""
    proposal: Proposal | None
    """The proposal of all rows of the pass; None if none proposes. Without distributions, its tokens were not drawn:
    each was its drafter's only candidate, of probability 1.
    """
    rule: AcceptRule


class RankedTokens(NamedTuple):
    """Log-probabilities at N places: of the chosen tokens, and of the K most likely."""

    chosen_N: Numbers
    ids_NK: Numbers
    """int32, most likely first."""
    logprobs_NK: Numbers
    wait: Callable[[], None]
    """Call this before reading the other fields, which may still be in transfer from the device."""


class Logits(Protocol):
    """The logits of a pass, `[B, Q, V]`, in the back end's form."""

    num_positions: int
    """Q."""
    vocab_tokens: int
    """V."""

    @property
    def tensor_BQV(self) -> Tensor:  # noqa: N802 - named by its shape
        """The logits as a tensor; writing to it changes all later answers except `best_BQ`."""
        ...

    @property
    def best_BQ(self) -> Numbers:  # noqa: N802 - named by its shape
        """The index of the largest logit at each position, int64, the first if there are several."""
        ...

    @property
    def is_finite_BQ(self) -> Numbers:  # noqa: N802 - named by its shape
        """Whether each position's largest logit is neither NaN nor infinite, bool.

        A hidden state with NaN or infinity makes all of its logits NaN or infinite, so the largest one suffices.
        """
        ...

    def judge(self, sampled: SampledRows) -> Numbers:
        """How many proposed tokens each sampled row accepts, and the token that follows them, int64 `[S, 2]`.

        The reference of both rules is `osd.verify.token_rule` and `osd.verify.block_rule`.
        """
        ...

    def rank(self, places: Sequence[int], chosen: Sequence[int], top_k: int) -> RankedTokens:
        """Log-probabilities, before temperature and filters.

        Args:
            places: N indices into the flattened `[B * Q]` positions.
            chosen: a token for each place.
            top_k: number of most likely tokens, at most V.
        """
        ...

    def replaced(self, logits_BQV: Tensor) -> Logits:
        """A copy with other values: the logits with penalties, in float32, or with -inf for forbidden tokens."""
        ...

    def replace_first(self, row: int, other: Logits) -> None:
        """Replace this pass's logits of a row by the first position of another pass, over that row alone."""
        ...
