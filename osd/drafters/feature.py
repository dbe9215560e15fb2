"""The `feature` and `eagle3` drafters in serving: a chain of one-layer steps from the target's hidden states.

A round first reads, for every row, the entries whose hidden states the target has computed since the last one (so a
drafter that was not called for a while catches up), then feeds the drafter its own features. The back end computes this
(`osd.kernels.backend.FeatureRound`); which entries are known is tracked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from osd.drafters.weights import check_state
from osd.kernels.backend import Backend, adopt_rows
from osd.kernels.reference.drafting.eagle3_net import Eagle3Config, Eagle3Net
from osd.kernels.reference.drafting.feature_net import FeatureConfig, FeatureNet
from osd.machine.transfer import on_side_stream
from osd.ports.drafter import Drafter, SwapIn
from osd.records.drafter_id import DrafterId
from osd.records.errors import WeightsRefusedError
from osd.records.proposal import DraftBatch, Proposal
from osd.records.shared_rows import SharedRows


class FeatureDrafter:
    """Serves one `FeatureNet` or `Eagle3Net` for all rows.

    Args:
        config: sizes of the network.
        shared: the target's embedding and head.
        backend: creates what computes.
        num_slots: rows.
        max_context_tokens: longest row.
        max_length: most tokens proposed per round.
        name: see `DrafterId`; empty: the kind of `config`.
    """

    needs_hidden = True

    def __init__(
        self,
        config: FeatureConfig | Eagle3Config,
        shared: SharedRows,
        backend: Backend,
        *,
        num_slots: int,
        max_context_tokens: int,
        max_length: int,
        name: str = "",
    ) -> None:
        self.id = DrafterId(name or config.kind, 0)
        self.config = config
        self.device = shared.embedding_VH.device
        with self.device:  # drawing a large network's initial weights on a CPU would take seconds
            net = config.network().to(shared.embedding_VH.dtype).eval().requires_grad_(False)
        self._max_length = max_length
        self._most_ahead = 2 * (max_length + 1)
        """Entries that a round writes beyond a row's known ones: padding, then the chain's steps."""
        self.round = backend.feature_round(
            net, shared, num_slots=num_slots, max_context_tokens=max_context_tokens, max_length=max_length
        )
        """Computes the proposals."""
        # The cache of row b is valid for entries first[b] .. end[b] - 1.
        self._first = [0] * num_slots
        self._end = [0] * num_slots

    def reset_row(self, row: int) -> None:
        """Begin a new query in a row. Its cache is zeroed, since even a masked NaN of the last query would spoil it."""
        self.round.cache.clear(row, 0, self._end[row] + self._most_ahead)
        self._first[row] = self._end[row] = 0

    def swap_rows(self, row: int, other: int) -> None:
        """Exchange two rows."""
        self.round.cache.swap(row, other, max(self._end[row], self._end[other]) + self._most_ahead)
        for bound in (self._first, self._end):
            bound[row], bound[other] = bound[other], bound[row]

    def adopt(self, other: Drafter) -> None:
        """See `Drafter`."""
        assert isinstance(other, FeatureDrafter)
        adopt_rows(self.round.cache, other.round.cache, other._end)
        self._first, self._end = other._first, other._end

    def state(self) -> dict[str, Tensor]:
        """The tensors of a drafter version."""
        state: dict[str, Tensor] = self.round.net.state_dict()
        return state

    def prepare(self, state: Mapping[str, Tensor], version: int) -> SwapIn:
        """See `Drafter`. The cache is kept: entries by old weights cost acceptance, never correctness."""
        check_state(state, self.state())
        self._check_vocabulary(state["vocab_ids_R"])
        with on_side_stream(self.device):
            put_to_use = self.round.lay_out(self._net_of(state))

        def swap_in() -> None:
            put_to_use()
            self.round.cache.clear_non_finite(max(self._end) + self._most_ahead)
            self.id = DrafterId(self.id.name, version)

        return swap_in

    def _check_vocabulary(self, ids_R: Tensor) -> None:
        if bool((ids_R < 0).any()) or bool((ids_R >= self.config.target_vocab_tokens).any()):
            raise WeightsRefusedError("tensor 'vocab_ids_R' names tokens outside the target's vocabulary")
        if len(set(ids_R.tolist())) < len(ids_R):
            # With a duplicate, the token's probability would be split in two, and verification would be wrong.
            raise WeightsRefusedError("tensor 'vocab_ids_R' names a token twice")

    def propose(self, batch: DraftBatch) -> Proposal:
        """Run a chain of `max(lengths)` steps for all rows; rows that asked for fewer are cut."""
        for row, num_tokens in enumerate(batch.num_tokens):
            if num_tokens - 1 - self._end[row] > self._max_length + 1:  # a query's first round, or after a pause
                self._read_ahead(row, batch)
        starts, counts = self._new_entries(batch.num_tokens)
        ids_BK, probs_BKV = self.round.propose(batch, starts, counts, self._first[: len(starts)])
        return Proposal(ids_BK, batch.lengths, probs_BKV, self.id)

    def _new_entries(self, num_tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        """Each row's first new entry, and its number of new entries."""
        starts, counts = [], []
        for row, num in enumerate(num_tokens):
            oldest = max(num - 1 - self.config.window_tokens, 0)
            if self._end[row] < oldest:  # entries before the attention window are never read again
                self._first[row] = self._end[row] = oldest
            starts.append(self._end[row])
            counts.append(num - 1 - self._end[row])
            self._end[row] = num - 1
        return starts, counts

    def _read_ahead(self, row: int, batch: DraftBatch) -> None:
        """Read all new entries of one row but the last, so that other rows are not padded to its length."""
        last = batch.num_tokens[row] - 2
        start = max(self._end[row], last - self.config.window_tokens + 1)
        if start > self._end[row]:
            self._first[row] = start
        self.round.read_ahead(batch, row, start, last, self._first[row])
        self._end[row] = last

    def _net_of(self, state: Mapping[str, Tensor]) -> FeatureNet | Eagle3Net:
        with torch.device("meta"):
            net = self.config.network().eval().requires_grad_(False)
        kinds = {name: tensor.dtype for name, tensor in self.state().items()}
        copies = {name: tensor.to(self.device, kinds[name], copy=True) for name, tensor in state.items()}
        net.load_state_dict(copies, assign=True)
        return net
