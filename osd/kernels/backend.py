"""The door to the kernels: what osd asks of whatever computes, one `Backend` for a process.

The reference (`osd.kernels.reference`) does it all with torch's operations, on any device, and is what the others are
held to; `osd.kernels.cpu` has loops compiled for this CPU, `osd.kernels.gpu` captured rounds and Triton kernels.
`osd.assembly.kernels` chooses one; nobody else asks which it is.

Shapes: S slots, B rows of a pass, Q new positions, L positions of a row, H hidden size, V vocabulary, K proposed
tokens, A layers, M key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from osd.kernels.reference.drafting.feature_net import FeatureNet
from osd.machine.arrays import Numbers
from osd.records.errors import OsdError
from osd.records.proposal import DraftBatch
from osd.records.shared_rows import SharedRows
from osd.verify.logits import Logits

Wanted = Literal["all", "last", "none"]
"""Of which new positions a pass gives logits."""


class Sizes(NamedTuple):
    """How much a model's rows may hold."""

    num_slots: int
    """S."""
    max_positions: int
    """Most positions of a row."""
    max_len: int
    """L: positions allocated for a row, since padding may be written beyond its end."""
    max_round_tokens: int = 0
    """New positions of a row up to which a pass over all logits, from row 0 on, is one of a decoding round."""


class PassOutput(NamedTuple):
    """What a pass leaves."""

    logits: Logits | None
    """At `[B, Q]` or, of the last position only, `[B, 1]`; None when they were not asked for."""
    hidden: Callable[[], Tensor]
    """Gives the last hidden states as a tensor: a round has no use for one."""

    @property
    def logits_BQV(self) -> Tensor:  # noqa: N802 - its shape, as everywhere
        """As a tensor, where they were asked for."""
        assert self.logits is not None
        return self.logits.tensor_BQV

    @property
    def hidden_BQH(self) -> Tensor:  # noqa: N802 - as above
        """The last hidden states."""
        return self.hidden()


class Proposed(NamedTuple):
    """A round's tokens, and the distributions they were drawn from (`osd.records.proposal.Proposal`)."""

    token_ids_BK: Numbers
    draft_probs_BKV: Numbers | None


class Cache(Protocol):
    """A slot cache: keys and values by row and position, in every layer. What lies beyond a row's length is stale."""

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """Let two rows' first positions change places."""
        ...

    def copy(self, source: int, destination: int, num_tokens: int) -> None:
        """Write a row's first positions over another row's."""
        ...

    def clear(self, row: int, start: int, held: int | None = None) -> None:
        """Zero a row from position `start` on.

        Args:
            row: which.
            start: its first position that is zeroed.
            held: positions that were written at most; None: not known.
        """
        ...

    def clear_non_finite(self) -> None:
        """Zero what overflowing weights left: masked or not, a NaN would spoil all that is computed over its row."""
        ...

    def row(self, row: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """A row's keys and values at its first positions, `[A, M, num_tokens, D]` each."""
        ...

    def write_row(self, row: int, keys_AMLD: Tensor, values_AMLD: Tensor) -> None:
        """Keep a row's first L positions as another cache has them, bit for bit."""
        ...


def adopt_rows(cache: Cache, other: Cache, num_tokens: Sequence[int]) -> None:
    """Copy another cache's rows.

    Args:
        cache: where to.
        other: of the same layers and heads.
        num_tokens: by row, how many positions are copied.
    """
    for row, num in enumerate(num_tokens):
        if num:
            cache.write_row(row, *other.row(row, num))


class RowMemory(Protocol):
    """Every row's tokens, and the last hidden states of those that were read; drafters and outcomes need them."""

    @property
    def tokens_SL(self) -> Tensor:  # noqa: N802 - its shape, as everywhere
        """By position; always the same memory."""
        ...

    @property
    def hidden_SLH(self) -> Tensor:  # noqa: N802 - as above
        """By position; always the same memory."""
        ...

    def write(self, row: int, start: int, ids: Sequence[int]) -> None:
        """Note known tokens of a row."""
        ...

    def write_rows(self, starts: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Note known tokens of rows 0, 1, …, all at once."""
        ...

    def keep(self, first_row: int, starts: Sequence[int], hidden_BQH: Tensor) -> None:
        """Keep the last hidden states of a pass, with zero for what is not finite: a drafter would carry a NaN on."""
        ...

    def copy_hidden(self, row: int, start: int, stop: int) -> Callable[[], Tensor]:
        """Copy some hidden states of a row to the host; what returns them once they are there, `[N, H]`."""
        ...

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """Let two rows' first positions change places."""
        ...

    def copy(self, source: int, destination: int, num_tokens: int) -> None:
        """Write a row's first positions over another row's."""
        ...


class Way(Protocol):
    """One way of computing a pass; checked against the plain model before it is used."""

    @property
    def name(self) -> str:
        """For the log, such as "the fused pass"."""
        ...

    def read(self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: Wanted) -> PassOutput:
        """Read `ids_BQ[b]` into row `first_row + b` from position `starts[b]` on.

        Args:
            first_row: the pass covers rows `first_row .. first_row + B - 1`.
            ids_BQ: new tokens, on the device or the host; rows shorter than Q are padded with any id, whose output is
                meaningless.
            starts: positions already cached, by row.
            logits: "all" positions, the "last" one only, or "none".
        """
        ...


class Passes(Protocol):
    """A model over its slot cache. `read` also keeps the hidden states in the row memory that it was made with."""

    @property
    def cache(self) -> Cache:
        """Keys and values of what was read."""
        ...

    @property
    def computes(self) -> str:
        """On what, with which weights and how, in one line for the operator."""
        ...

    def read(self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: Wanted) -> PassOutput:
        """See `Way`."""
        ...

    def draft(self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], num_tokens: int) -> Proposed:
        """A draft model's round: read what is new, then choose tokens one after the other.

        Args:
            batch: the rows.
            starts: each row's first position that was not read.
            counts: how many there are, at least one.
            num_tokens: size of the vocabulary that is proposed from, at most V.
        """
        ...


class Decoder(Passes, Protocol):
    """Passes of a Llama-shaped model by a back end's own layers."""

    def pack(self) -> None:
        """Copy the weights into the layout that is read fastest; to be called before the first pass and after every
        change of the weights. Frozen ones are then kept in this layout only.
        """
        ...

    def unpack(self) -> None:
        """Give the model back the weights that `pack` did not keep."""
        ...

    @property
    def ways(self) -> Sequence[Way]:
        """How passes are computed; the first is always needed, the others are used where they are faster."""
        ...

    def drop(self, way: Way) -> None:
        """Do without one of the others."""
        ...


class FeatureRound(Protocol):
    """The `feature` drafter's network over a cache of its own: all that its rounds compute.

    Entry t of a row reads the token at t + 1 and the target's hidden state at t (`FeatureNet`).
    """

    @property
    def cache(self) -> Cache:
        """Keys and values of the entries that were read."""
        ...

    @property
    def net(self) -> FeatureNet:
        """The weights that serve."""
        ...

    def lay_out(self, net: FeatureNet) -> Callable[[], None]:
        """Bring new weights into the form that serves, on any thread; what is returned puts them to use."""
        ...

    def read_ahead(self, batch: DraftBatch, row: int, start: int, stop: int, first: int) -> None:
        """Read the entries `start .. stop - 1` of one row, looking back to entry `first` at most."""
        ...

    def propose(
        self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], firsts: Sequence[int]
    ) -> Proposed:
        """Read what is new of rows 0, 1, …, then propose `max(batch.lengths)` tokens for each.

        Args:
            batch: the rows.
            starts: each row's first new entry.
            counts: how many are new, at least one.
            firsts: the first entry that may be looked at.
        """
        ...


class Backend(Protocol):
    """Makes what computes."""

    def rows(self, num_slots: int, length: int, like: Tensor) -> RowMemory:
        """A memory of rows of so many positions.

        Args:
            num_slots: S.
            length: L.
            like: `[…, H]`, of the device and type of the hidden states.
        """
        ...

    def logits(self, logits_BQV: Tensor) -> Logits:
        """The logits of a pass that was not computed by this back end."""
        ...

    def most_likely(self, logits: Tensor) -> Tensor:
        """The index of the greatest logit along the last dimension, int64; of equal ones, the first."""
        ...

    def decoder(
        self, model: Any, sizes: Sizes, *, kept: RowMemory | None, frozen: bool, is_int4: bool
    ) -> Decoder | None:
        """A decoder that runs a causal LM of transformers; None where its architecture is not one that it knows.

        Args:
            model: its projections may become views of fused ones.
            sizes: of the cache.
            kept: where `read` keeps hidden states; None: nowhere.
            frozen: the weights never change.
            is_int4: round the layers' weights to four bits first: the model is another one then.

        Raises:
            OsdError: it cannot be rounded to four bits.
        """
        ...

    def feature_round(
        self, net: FeatureNet, shared: SharedRows, *, num_slots: int, max_context_tokens: int, max_length: int
    ) -> FeatureRound:
        """A `feature` drafter's rounds.

        Args:
            net: its weights, of the device and type that serve.
            shared: the target's embedding and head.
            num_slots: S.
            max_context_tokens: longest row.
            max_length: most tokens proposed per round.
        """
        ...


def int4_refusal(model: Any) -> OsdError:
    """Why a model's weights cannot be rounded to four bits."""
    needs = "a Llama-shaped model in bfloat16 on a CPU, of sizes that are multiples of 32, and numba"
    return OsdError(f"target.dtype int4 needs {needs}; {type(model).__name__} cannot have it here: take auto")
