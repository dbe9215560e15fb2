"""The interface to everything that computes: one `Backend` per process.

The reference (`osd.kernels.reference`) does all with torch's operations, on any device, and the others are tested
against it: `osd.kernels.cpu` with loops compiled for this CPU, `osd.kernels.gpu` with captured rounds and Triton
kernels. `osd.assembly.kernels` chooses one; no other module asks which one it is.

Shapes: S slots, B rows of a pass, Q new positions, L positions of a row, H hidden size, V vocabulary, K proposed
tokens, A layers, M key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from osd.kernels.reference.drafting.eagle3_net import Eagle3Net
from osd.kernels.reference.drafting.feature_net import FeatureNet
from osd.machine.arrays import Numbers
from osd.records.errors import OsdError
from osd.records.proposal import DraftBatch
from osd.records.shared_rows import SharedRows
from osd.verify.logits import Logits

Wanted = Literal["all", "last", "none"]
"""For which of the new positions a pass computes logits."""


class Sizes(NamedTuple):
    """The sizes of a model's cache."""

    num_slots: int
    """S."""
    max_positions: int
    """Most positions of a row."""
    max_len: int
    """L: positions allocated per row; more than `max_positions`, since padding may be written beyond a row's end."""
    max_round_tokens: int = 0
    """Most new positions per row in a decoding round, which is a pass from row 0 on with all logits."""


class PassOutput(NamedTuple):
    """The result of a pass."""

    logits: Logits | None
    """For `[B, Q]` positions, or for the last ones, `[B, 1]`; None if none were requested."""
    hidden: Callable[[], Tensor]
    """Returns the last hidden states as a tensor; a function, since a round does not need one."""

    @property
    def logits_BQV(self) -> Tensor:  # noqa: N802 - named by its shape
        """The logits as a tensor; they must have been requested."""
        assert self.logits is not None
        return self.logits.tensor_BQV

    @property
    def hidden_BQH(self) -> Tensor:  # noqa: N802 - named by its shape
        """The last hidden states."""
        return self.hidden()


class Proposed(NamedTuple):
    """A round's tokens and the distributions they were drawn from, as in `osd.records.proposal.Proposal`."""

    token_ids_BK: Numbers
    draft_probs_BKV: Numbers | None


class Cache(Protocol):
    """A slot cache: all layers' keys and values by row and position. What lies beyond a row's length is stale."""

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """Exchange two rows' first positions."""
        ...

    def copy(self, source: int, destination: int, num_tokens: int) -> None:
        """Copy a row's first positions to another row."""
        ...

    def clear(self, row: int, start: int, held: int | None = None) -> None:
        """Zero a row from position `start` on.

        Args:
            row: the row.
            start: the first position that is zeroed.
            held: number of positions ever written; None: unknown.
        """
        ...

    def clear_non_finite(self, held: int | None = None) -> None:
        """Zero NaN and infinite values; even where it is masked, a NaN would spoil everything computed over its row.

        Args:
            held: no row holds anything but zeros from this position on; None: unknown.
        """
        ...

    def row(self, row: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """A row's keys and values at its first positions, `[A, M, num_tokens, D]` each."""
        ...

    def write_row(self, row: int, keys_AMLD: Tensor, values_AMLD: Tensor) -> None:
        """Copy a row's first L positions from another cache, bit for bit."""
        ...


def adopt_rows(cache: Cache, other: Cache, num_tokens: Sequence[int]) -> None:
    """Copy rows from another cache.

    Args:
        cache: the destination.
        other: the source, with the same layers and heads.
        num_tokens: positions to copy, by row.
    """
    for row, num in enumerate(num_tokens):
        if num:
            cache.write_row(row, *other.row(row, num))


class RowMemory(Protocol):
    """Every row's tokens, and hidden states that the target computed; for drafters and outcomes.

    Hidden states are the last ones, or those that enter several layers (see `Backend.decoder`).
    """

    @property
    def tokens_SL(self) -> Tensor:  # noqa: N802 - named by its shape
        """Tokens by position; always the same memory."""
        ...

    @property
    def hidden_SLH(self) -> Tensor:  # noqa: N802 - named by its shape
        """Hidden states by position; always the same memory."""
        ...

    def write(self, row: int, start: int, ids: Sequence[int]) -> None:
        """Write known tokens of a row."""
        ...

    def write_rows(self, starts: Sequence[int], ids: Sequence[Sequence[int]]) -> None:
        """Write known tokens of rows 0, 1, …, all at once."""
        ...

    def keep(self, first_row: int, starts: Sequence[int], hidden_BQH: Tensor) -> None:
        """Store a pass's hidden states, with zero for NaN and infinity, which a drafter would spread."""
        ...

    def copy_hidden(self, row: int, start: int, stop: int) -> Callable[[], Tensor]:
        """Start copying hidden states to the host; the returned function waits for them and returns `[N, H]`."""
        ...

    def swap(self, row: int, other: int, num_tokens: int) -> None:
        """Exchange two rows' first positions."""
        ...

    def copy(self, source: int, destination: int, num_tokens: int) -> None:
        """Copy a row's first positions to another row."""
        ...


class Way(Protocol):
    """One implementation of a pass; it is checked against the plain model before it is used."""

    @property
    def name(self) -> str:
        """Its name in the log, such as "the fused pass"."""
        ...

    def read(self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: Wanted) -> PassOutput:
        """Run a pass that writes `ids_BQ[b]` to row `first_row + b` from position `starts[b]` on.

        Args:
            first_row: the pass covers rows `first_row .. first_row + B - 1`.
            ids_BQ: new tokens, on the device or the host; rows shorter than Q are padded with any id, whose output is
                undefined.
            starts: number of positions cached before, by row.
            logits: for "all" new positions, only the "last" one, or "none".
        """
        ...


class Passes(Protocol):
    """A model over its slot cache. `read` also stores hidden states in the row memory that it was made with."""

    @property
    def cache(self) -> Cache:
        """Keys and values of all positions that were read."""
        ...

    @property
    def computes(self) -> str:
        """Device, dtype and implementation in one line, for the operator."""
        ...

    def read(self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: Wanted) -> PassOutput:
        """See `Way`."""
        ...

    def draft(self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], num_tokens: int) -> Proposed:
        """A draft model's round: read the new tokens, then choose tokens one after the other.

        Args:
            batch: the rows.
            starts: each row's first position that is not cached.
            counts: number of new tokens per row, at least one.
            num_tokens: size of the vocabulary to propose from, at most V.
        """
        ...


class Decoder(Passes, Protocol):
    """Passes of a Llama-shaped model by a back end's own layers."""

    def pack(self) -> None:
        """Copy the weights into the fastest layout. Must be called before the first pass and after every change of the
        weights. Frozen weights are afterwards only stored in that layout.
        """
        ...

    def unpack(self) -> None:
        """Restore the weights that `pack` removed from the model."""
        ...

    @property
    def ways(self) -> Sequence[Way]:
        """The implementations of a pass. The first one is required; others are used where they are faster."""
        ...

    def drop(self, way: Way) -> None:
        """Stop using one of the others."""
        ...


class FeatureRound(Protocol):
    """The computations of a `feature` or `eagle3` drafter's rounds: its network over a cache of its own.

    Entry t of a row reads the token at t + 1 and the target's hidden states at t (`FeatureNet`, `Eagle3Net`).
    """

    @property
    def cache(self) -> Cache:
        """Keys and values of all entries that were read."""
        ...

    @property
    def net(self) -> Any:
        """The network in use: a `FeatureNet` or `Eagle3Net`."""
        ...

    def lay_out(self, net: Any) -> Callable[[], None]:
        """Bring new weights into the layout of rounds, on any thread; the returned function puts them in use."""
        ...

    def read_ahead(self, batch: DraftBatch, row: int, start: int, stop: int, first: int) -> None:
        """Read the entries `start .. stop - 1` of one row, attending to entries from `first` on."""
        ...

    def propose(
        self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], firsts: Sequence[int]
    ) -> Proposed:
        """Read the new entries of rows 0, 1, …, then propose `max(batch.lengths)` tokens for each.

        Args:
            batch: the rows.
            starts: each row's first new entry.
            counts: number of new entries per row, at least one.
            firsts: each row's first entry that may be attended to.
        """
        ...


class Backend(Protocol):
    """Creates the objects that compute."""

    def rows(self, num_slots: int, length: int, like: Tensor) -> RowMemory:
        """A row memory.

        Args:
            num_slots: S.
            length: L.
            like: `[…, H]`, with the device and dtype of the hidden states.
        """
        ...

    def logits(self, logits_BQV: Tensor) -> Logits:
        """Wrap the logits of a pass that this back end did not compute."""
        ...

    def most_likely(self, logits: Tensor) -> Tensor:
        """The index of the largest logit along the last dimension, int64, the first if there are several."""
        ...

    def decoder(
        self,
        model: Any,
        sizes: Sizes,
        *,
        kept: RowMemory | None,
        frozen: bool,
        is_int4: bool,
        hidden_layers: Sequence[int] = (),
    ) -> Decoder | None:
        """A decoder that runs a causal LM of transformers; None if it does not support the architecture.

        Args:
            model: its projections may become views of fused ones.
            sizes: of the cache.
            kept: where `read` stores hidden states; None: nowhere.
            frozen: whether the weights never change.
            is_int4: quantise the layers' weights to four bits first, which makes it another model.
            hidden_layers: store, instead of the last hidden states, the residual streams that enter these layers, side
                by side in this order; empty: the last hidden states.

        Raises:
            OsdError: the weights cannot be quantised to four bits.
        """
        ...

    def feature_round(
        self,
        net: FeatureNet | Eagle3Net,
        shared: SharedRows,
        *,
        num_slots: int,
        max_context_tokens: int,
        max_length: int,
    ) -> FeatureRound:
        """The computations of a `feature` or `eagle3` drafter's rounds; those of `eagle3` are always the reference's.

        Args:
            net: its network, with the device and dtype to serve in.
            shared: the target's embedding and head.
            num_slots: S.
            max_context_tokens: longest row.
            max_length: most tokens proposed per round.
        """
        ...


def int4_refusal(model: Any) -> OsdError:
    """The error for a model whose weights cannot be quantised to four bits."""
    needs = "a Llama-shaped model in bfloat16 on a CPU, of sizes that are multiples of 32, and numba"
    return OsdError(f"target.dtype int4 needs {needs}; {type(model).__name__} cannot have it here: take auto")
