"""The `feature` drafter, serving side: a chain of one-layer steps from the target's last hidden state.

Each round it first reads, for every row, the entries whose hidden states the target has computed since (all of them
at once, so a drafter that was not called for a while catches up by itself), then feeds itself its own features.

Shapes: B rows, T entries, L cached entries, H hidden size, N heads, D head size, K proposed, R reduced vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.drafters.choose import ChainChoice, Draws
from osd.drafters.feature_chain import FeatureChain
from osd.drafters.feature_compiled import CompiledFeature
from osd.drafters.feature_kernels import KernelFeature
from osd.drafters.feature_net import FeatureConfig, FeatureNet, head_rows
from osd.drafters.weights import check_state
from osd.kernels.cpu.layers import can_compile
from osd.kernels.cpu.tiled_cache import TiledCache
from osd.kernels.gpu.available import can_use_kernels
from osd.kernels.gpu.graphs import Capture, GraphPool, Work, bucket, capture_for
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.projections import DenseProjection, Projection
from osd.kernels.reference.slot_cache import PassWindow
from osd.machine.transfer import beside, staged, upload, used_here
from osd.models.shared_rows import SharedRows
from osd.ports.drafter import Drafter, SwapIn
from osd.records.errors import WeightsRefusedError
from osd.records.proposal import DraftBatch, Proposal


class FeatureDrafter:
    """Serves one `FeatureNet` for all rows.

    Args:
        config: shapes of the network.
        shared: the target's embedding and head.
        num_slots: rows.
        max_context_tokens: longest row.
        max_length: most tokens proposed per round.
        capture: how a round is captured; by default what fits the device.
    """

    kind = "feature"

    def __init__(
        self,
        config: FeatureConfig,
        shared: SharedRows,
        *,
        num_slots: int,
        max_context_tokens: int,
        max_length: int,
        capture: Capture | None = None,
    ) -> None:
        self.version = 0
        self.config = config
        self._shared = shared
        self.device, self.dtype = shared.embedding_VH.device, shared.embedding_VH.dtype
        with self.device:  # a large one's first weights take seconds to draw on a CPU
            self.net = FeatureNet(config).to(self.dtype).eval().requires_grad_(False)
        """Captured work reads its very memory; else every swap brings another one."""
        length = max_context_tokens + config.window_tokens + 2 * (max_length + 1)
        head_size = config.hidden_size // config.num_heads
        self._window = PassWindow(self.device)
        self._cos_LD, self._sin_LD = self.net.rotation(torch.arange(length, device=self.device), self.dtype)
        self._max_length = max_length
        self._most_ahead = 2 * (max_length + 1)
        """Entries that a round writes beyond a row's known ones: padding, then its own steps."""
        capture = capture or capture_for(self.device)
        self._graphs = GraphPool(capture) if capture is not None else None
        self._can_compile = self._graphs is None and can_compile(self._cos_LD)
        cache_shape = 1, num_slots, length, config.num_heads, head_size
        kind = TiledCache if self._can_compile else FlatCache
        self._cache: TiledCache | FlatCache = kind(*cache_shape, like=shared.embedding_VH)
        self._use(self._laid_out(self.net))
        if self._graphs is not None:
            assert isinstance(self._cache, FlatCache)
            self._chain = FeatureChain(self.net, shared, self._head, self._cache, (self._cos_LD, self._sin_LD))
        # Row b's cache is sound for entries first[b] .. end[b] - 1.
        self._first = [0] * num_slots
        self._end = [0] * num_slots

    def reset_row(self, row: int) -> None:
        """A new query starts in the row. What the last one left is zeroed: even masked, a NaN would spoil it."""
        self._cache.clear(row, 0, self._end[row] + self._most_ahead)
        self._first[row] = self._end[row] = 0

    def swap_rows(self, row: int, other: int) -> None:
        """Let two rows change places."""
        self._cache.swap(row, other, max(self._end[row], self._end[other]))
        for bound in (self._first, self._end):
            bound[row], bound[other] = bound[other], bound[row]

    def adopt(self, other: Drafter) -> None:
        """See `Drafter`."""
        assert isinstance(other, FeatureDrafter)
        if isinstance(self._cache, TiledCache):
            assert isinstance(other._cache, FlatCache)
            for row, end in enumerate(other._end):
                if end:
                    self._cache.write_row(row, *other._cache.row(row, end))
        self._first, self._end = other._first, other._end

    def state(self) -> dict[str, Tensor]:
        """What a weight version carries."""
        return self.net.state_dict()

    def prepare(self, state: Mapping[str, Tensor], version: int) -> SwapIn:
        """See `Drafter`. The cache stays: stale entries cost acceptance, never correctness."""
        check_state(state, self.state())
        self._check_vocabulary(state["vocab_ids_R"])
        with beside(self.device):
            laid_out = self._laid_out(self._net_of(state))

        def swap_in() -> None:
            if self._graphs is None:
                self._use(laid_out)
            else:
                self._copy(laid_out)
            self._cache.clear_non_finite()
            self.version = version

        return swap_in

    def _check_vocabulary(self, ids_R: Tensor) -> None:
        if bool((ids_R < 0).any()) or bool((ids_R >= self.config.target_vocab_tokens).any()):
            raise WeightsRefusedError("tensor 'vocab_ids_R' names tokens outside the target's vocabulary")
        if len(set(ids_R.tolist())) < len(ids_R):
            # Its two shares of probability would not be told apart, and the output would not be the target's.
            raise WeightsRefusedError("tensor 'vocab_ids_R' names a token twice")

    def propose(self, batch: DraftBatch) -> Proposal:
        """A chain of `max(lengths)` steps for all rows; rows that want fewer are cut."""
        for row, num_tokens in enumerate(batch.num_tokens):
            if num_tokens - 1 - self._end[row] > self._max_length + 1:  # its first round, or one after a pause
                self._read_ahead(row, batch)
        starts, counts = self._new_entries(batch.num_tokens)
        if self._graphs is not None:
            return self._replay(self._graphs, batch, starts, counts)
        if self._compiled is not None and self._compiled.can_chain:
            ids_BK, probs_BKV = self._compiled.chain(batch, starts, counts, self._first[: len(starts)])
            return Proposal(ids_BK, batch.lengths, probs_BKV, self.version)
        return self._draft(batch, starts, counts)

    @torch.no_grad()
    def _draft(self, batch: DraftBatch, starts: list[int], counts: list[int]) -> Proposal:
        """The round by one operation after the other."""
        choice = self._choice(max(batch.lengths), Draws.of(batch, self.config.vocab_tokens))
        feature_BH = self._catch_up(batch, starts, counts)
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        for step in range(choice.num_steps):
            token_B = choice.take(self._head(feature_BH))
            if step + 1 < choice.num_steps:
                feature_BH = self._pass(token_B[:, None], feature_BH[:, None], [end + step for end in ends])[:, 0]
        return choice.proposal(batch, self.version)

    def _choice(self, num_steps: int, draws: Draws | None) -> ChainChoice:
        return ChainChoice(num_steps, draws, self.config.target_vocab_tokens, self.net.vocab_ids_R)

    def _new_entries(self, num_tokens: Sequence[int]) -> tuple[list[int], list[int]]:
        """By row, the first entry that was not read yet, and how many there are."""
        starts, counts = [], []
        for row, num in enumerate(num_tokens):
            oldest = max(num - 1 - self.config.window_tokens, 0)
            if self._end[row] < oldest:  # what lies further back than the window is never looked at again
                self._first[row] = self._end[row] = oldest
            starts.append(self._end[row])
            counts.append(num - 1 - self._end[row])
            self._end[row] = num - 1
        return starts, counts

    @torch.no_grad()
    def _replay(self, graphs: GraphPool, batch: DraftBatch, starts: list[int], counts: list[int]) -> Proposal:
        """The whole round as captured work; rows are rounded up, so that few shapes do for all."""
        num_rows, num_steps, num_new = len(batch.lengths), max(batch.lengths), self._max_length + 1
        rows = bucket(num_rows, 1, len(self._end))
        # Rows beyond the real ones write where no row of a query reaches.
        padding, nowhere = rows - num_rows, self._cos_LD.shape[0] - num_new - num_steps
        placed = [starts + [nowhere] * padding, counts + [1] * padding, self._first[:num_rows] + [0] * padding]
        draws = Draws.of(batch, self.config.vocab_tokens, rows)
        filters = () if draws is None else tuple(one is not None for one in draws.shaping)

        def work_that_reads(kernels: KernelFeature | None) -> Work:
            def work(places_3B: Tensor, *draws_tensors: Tensor) -> tuple[Tensor, ...]:
                choice = self._choice(num_steps, None if draws is None else draws.like(draws_tensors))
                known, (starts_B, counts_B, firsts_B) = (batch.tokens_SL, batch.hidden_SLH), places_3B
                self._chain(*known, starts_B, counts_B, firsts_B, choice, num_new, kernels)
                probs_BKV = choice.draft_probs_BKV
                return (choice.token_ids_BK,) if probs_BKV is None else (choice.token_ids_BK, probs_BKV)

            return work

        ids_BK, *probs = graphs.run(
            (rows, num_steps, filters),
            work_that_reads(None),
            staged(placed, self.device),
            *(() if draws is None else draws.tensors()),
            instead=None if self._kernels is None else work_that_reads(self._kernels),
        )
        probs_BKV = probs[0][:num_rows] if probs else None
        return Proposal(ids_BK[:num_rows], batch.lengths, probs_BKV, self.version)

    @torch.no_grad()
    def _read_ahead(self, row: int, batch: DraftBatch) -> None:
        """Read all new entries of one row but the last, so that no other row is padded to as many."""
        last = batch.num_tokens[row] - 2
        start = max(self._end[row], last - self.config.window_tokens + 1)
        if start > self._end[row]:
            self._first[row] = start
        self._pass(
            batch.tokens_SL[row : row + 1, start + 1 : last + 1],
            batch.hidden_SLH[row : row + 1, start:last],
            [start],
            row,
        )
        self._end[row] = last

    def _catch_up(self, batch: DraftBatch, starts: list[int], counts: list[int]) -> Tensor:
        """Read the entries since the last call; the feature at each row's last known entry, `[B, H]`."""
        entries_T = torch.arange(max(counts), device=self.device)
        rows_B1 = torch.arange(len(starts), device=self.device)[:, None]
        entries_BT = upload(starts, self.device)[:, None] + entries_T
        entries_BT = entries_BT.clamp(max=batch.tokens_SL.shape[1] - 2)
        features_BTH = self._pass(
            batch.tokens_SL[rows_B1, entries_BT + 1], batch.hidden_SLH[rows_B1, entries_BT], starts
        )
        last_B = upload(counts, self.device) - 1
        return features_BTH[rows_B1[:, 0], last_B]

    def _pass(self, tokens_BT: Tensor, hidden_BTH: Tensor, starts: Sequence[int], first_row: int = 0) -> Tensor:
        """Write entries from `starts[b]` on, attend within the window, and return features `[B, T, H]`."""
        window = self._window
        window.set(first_row, starts, tokens_BT.shape[1])
        firsts = self._first[first_row : first_row + len(starts)]
        embedding_BTH = F.embedding(tokens_BT, self._shared.embedding_VH)
        if self._compiled is not None:
            return self._compiled(embedding_BTH, hidden_BTH, window, firsts)
        cos_BTD, sin_BTD = self._cos_LD[window.positions_BQ], self._sin_LD[window.positions_BQ]
        inputs = self.net.attention_inputs(embedding_BTH, hidden_BTH, cos_BTD, sin_BTD)
        assert isinstance(self._cache, FlatCache)
        [cached] = self._cache.at(window)
        cached.write(torch.cat((inputs.key_BNTD, inputs.value_BNTD), dim=1).transpose(1, 2))
        oldest = max(min(starts) - self.config.window_tokens + 1, min(firsts))
        attended_BNTD = F.scaled_dot_product_attention(
            inputs.query_BNTD,
            cached.keys_BMLD[:, :, oldest:],
            cached.values_BMLD[:, :, oldest:],
            attn_mask=self._mask(oldest),
        )
        return self.net.feature(inputs.residual_BTH, attended_BNTD.transpose(1, 2).flatten(2))

    def _mask(self, oldest: int) -> Tensor | None:
        """Which entries from `oldest` on each query looks at, `[B, 1, T, L]`; None: at all of them."""
        window = self._window
        if window.num_rows == window.num_new == 1:
            return None
        entries_L = torch.arange(oldest, window.num_seen, device=self.device)
        first_B11 = upload(self._first[window.first_row :][: window.num_rows], self.device)[:, None, None]
        query_BT1 = window.positions_BQ[:, :, None]
        mask_BTL = (entries_L <= query_BT1) & (entries_L > query_BT1 - self.config.window_tokens)
        return (mask_BTL & (entries_L >= first_B11))[:, None]

    def _net_of(self, state: Mapping[str, Tensor]) -> FeatureNet:
        with torch.device("meta"):
            net = FeatureNet(self.config).eval().requires_grad_(False)
        kinds = {name: tensor.dtype for name, tensor in self.state().items()}
        copies = {name: tensor.to(self.device, kinds[name], copy=True) for name, tensor in state.items()}
        net.load_state_dict(copies, assign=True)
        return net

    def _laid_out(self, net: FeatureNet) -> _LaidOut:
        """A net's matrices and the head's rows in the layout that is read fastest."""
        rows = head_rows(self._shared, net.vocab_ids_R)
        rotation = self._cos_LD, self._sin_LD
        if isinstance(self._cache, TiledCache):
            compiled = CompiledFeature(net, self._shared.embedding_VH, rows, self._cache, *rotation)
            return _LaidOut(net, rows, compiled.head, compiled=compiled)
        kernels = None
        if self._graphs is not None and can_use_kernels(self.device):
            kernels = KernelFeature(net, self._shared, rows, self._cache, rotation)
        return _LaidOut(net, rows, DenseProjection(*rows), kernels=kernels)

    def _use(self, laid_out: _LaidOut) -> None:
        self.net, self._head_rows, self._head, self._compiled, self._kernels = laid_out

    def _copy(self, laid_out: _LaidOut) -> None:
        """Into the memory that captured work reads."""
        self.net.load_state_dict({name: used_here(tensor) for name, tensor in laid_out.net.state_dict().items()})
        for place, new in zip(self._head_rows, laid_out.head_rows, strict=True):
            if place is not None and new is not None:
                place.copy_(used_here(new))
        if self._kernels is not None and laid_out.kernels is not None:
            self._kernels.copy_codes(laid_out.kernels)


class _LaidOut(NamedTuple):
    """Weights as they are served."""

    net: FeatureNet
    head_rows: tuple[Tensor, Tensor | None]
    head: Projection
    compiled: CompiledFeature | None = None
    kernels: KernelFeature | None = None
