"""A Llama-shaped decoder on a GPU: decoding rounds are captured once per shape, then replayed.

What is captured computes the same as `osd.kernels.reference.llama`, by torch's operations or by Triton kernels,
whichever is measured to be faster.

Shapes: B rows, Q new positions, H hidden size, V vocabulary, K proposed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.kernels.backend import PassOutput, Proposed, Sizes, Wanted, Way
from osd.kernels.gpu.attention import PiecewiseAttention, fits_kernels
from osd.kernels.gpu.graphs import Capture, GraphPool, Work, bucket
from osd.kernels.gpu.layers import project, read_layers
from osd.kernels.reference.decoder import MakeLogits, TorchDecoder
from osd.kernels.reference.drafting.chain_choice import ChainChoice, Draws
from osd.kernels.reference.logits import MostLikely, TorchLogits
from osd.kernels.reference.rows import TorchRows
from osd.kernels.reference.window import PassWindow
from osd.machine.arrays import Numbers
from osd.machine.transfer import pinned, to_device
from osd.records.proposal import DraftBatch

SMALLEST_SEEN = 256


class KernelDecoder:
    """A pass by Triton kernels, over the weights and cache of a torch decoder, which runs passes that do not fit.

    Args:
        decoder: the torch decoder.
    """

    name = "the GPU's kernels"

    def __init__(self, decoder: TorchDecoder) -> None:
        self._decoder, self._window = decoder, PassWindow(decoder.device)

    def fits(self, num_new: int) -> bool:
        """Whether kernels can run a pass with this many new positions per row."""
        heads = self._decoder.llama.heads
        return fits_kernels(num_new, heads.num_heads, heads.num_key_heads)

    def read(self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: Wanted) -> PassOutput:
        """See `Way`; does not store hidden states."""
        if not self.fits(ids_BQ.shape[1]):
            return self._decoder.read(first_row, ids_BQ, starts, logits=logits)
        self._window.set(first_row, starts, ids_BQ.shape[1])
        logits_BQV, hidden_BQH, _ = self.run(to_device(ids_BQ, self._decoder.device), self._window, logits)
        return PassOutput(None if logits_BQV is None else TorchLogits(logits_BQV), lambda: hidden_BQH)

    @torch.no_grad()
    def run(self, ids_BQ: Tensor, window: PassWindow, logits: Wanted) -> tuple[Tensor | None, Tensor, Tensor]:
        """See `TorchDecoder.run`; stored are the last hidden states."""
        llama = self._decoder.llama
        attend = PiecewiseAttention(self._decoder.cache, window, *llama.rotation, **llama.heads._asdict())
        hidden_RH = read_layers(llama.layers, llama.embedding(ids_BQ.flatten()), attend, llama.norm)
        hidden_BQH = hidden_RH.view(*ids_BQ.shape, -1)
        if logits == "none":
            return None, hidden_BQH, hidden_BQH
        return project(llama.head, hidden_BQH if logits == "all" else hidden_BQH[:, -1:]), hidden_BQH, hidden_BQH


class GpuDecoder:
    """See `osd.kernels.backend.Decoder`.

    Args:
        model: a causal LM for which `is_llama` holds.
        sizes: of the cache.
        kept: where hidden states are stored.
        make_logits: wraps the logits of a pass.
        find: finds the most likely token.
        capture: captures a round.
        has_kernels: whether Triton kernels run on the device.
        hidden_layers: see `osd.kernels.backend.Backend.decoder`; Triton kernels, which do not have these residual
            streams, are not used then.
    """

    def __init__(
        self,
        model: Any,
        sizes: Sizes,
        *,
        kept: TorchRows | None,
        make_logits: MakeLogits,
        find: MostLikely,
        capture: Capture,
        has_kernels: bool,
        hidden_layers: Sequence[int] = (),
    ) -> None:
        self.torch = TorchDecoder(
            model, sizes, kept=kept, make_logits=make_logits, find=find, hidden_layers=hidden_layers
        )
        self.cache = self.torch.cache
        self.kernels = KernelDecoder(self.torch) if has_kernels and not hidden_layers else None
        self._sizes, self._kept, self._find = sizes, kept, find
        self._window = PassWindow(self.torch.device)
        self._graphs = GraphPool(capture)

    @property
    def computes(self) -> str:
        """See `Passes`."""
        return self.torch.computes

    @property
    def ways(self) -> Sequence[Way]:
        """See `Decoder`; captured rounds are not among them."""
        return [self.torch] if self.kernels is None else [self.torch, self.kernels]

    def drop(self, way: Way) -> None:
        """See `Decoder`."""
        if way is self.kernels:
            self.kernels = None

    def pack(self) -> None:
        """See `Decoder`; nothing to do, since the model's own weights are used."""

    def unpack(self) -> None:
        """See `Decoder`."""

    def read(self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: Wanted) -> PassOutput:
        """See `Way`."""
        is_round = logits == "all" and first_row == 0 and ids_BQ.shape[1] <= self._sizes.max_round_tokens
        return self._replay(ids_BQ, starts) if is_round else self.torch.read(first_row, ids_BQ, starts, logits=logits)

    @torch.no_grad()
    def _replay(self, numbers_BQ: Numbers, starts: Sequence[int]) -> PassOutput:
        """A captured pass, which also stores the hidden states and finds the most likely tokens."""
        device, (num_rows, num_new) = self.torch.device, numbers_BQ.shape
        ids_BQ = numbers_BQ if isinstance(numbers_BQ, Tensor) else pinned(numbers_BQ, device)
        padded, seen = self._bucketed(starts, num_new)
        if len(padded) > num_rows:
            ids_BQ = F.pad(ids_BQ, (0, 0, 0, len(padded) - num_rows))

        def work_by(way: TorchDecoder | KernelDecoder) -> Work:
            def work(ids_BQ: Tensor, starts_B: Tensor) -> tuple[Tensor, ...]:
                logits_BQV, hidden_BQH, kept_BQJ = self._run(way, ids_BQ, starts_B, seen)
                if self._kept is not None:
                    self._kept.keep_at(self._window.rows_B1, self._window.positions_BQ, kept_BQJ)
                return logits_BQV, hidden_BQH, self._find(logits_BQV)

            return work

        logits_BQV, hidden_BQH, best_BQ = self._graphs.run(
            (len(padded), num_new, seen),
            work_by(self.torch),
            ids_BQ,
            pinned(padded, device),
            instead=work_by(self.kernels) if self.kernels is not None and self.kernels.fits(num_new) else None,
        )
        found = TorchLogits(logits_BQV[:num_rows], best_BQ[:num_rows], find=self._find)
        return PassOutput(found, lambda: hidden_BQH[:num_rows])

    def _run(
        self, way: TorchDecoder | KernelDecoder, ids_BQ: Tensor, starts_B: Tensor, seen: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A pass from row 0 on as a function of tensors only: logits, last hidden states, those to be stored."""
        self._window.set_on_device(starts_B, ids_BQ.shape[1], seen)
        logits_BQV, hidden_BQH, kept_BQJ = way.run(ids_BQ, self._window, "all")
        assert logits_BQV is not None
        return logits_BQV, hidden_BQH, kept_BQJ

    def _bucketed(self, starts: Sequence[int], num_new: int) -> tuple[list[int], int]:
        """Row starts and number of positions read, for captured work over `num_new` positions.

        Both the number of rows and of positions are rounded up, so that few shapes are captured. Padding rows write
        beyond the longest context, where no query's row reaches.
        """
        max_len = self._sizes.max_len
        padding = bucket(len(starts), 1, self._sizes.num_slots) - len(starts)
        seen = bucket(max(starts) + num_new, SMALLEST_SEEN, max_len)
        return [*starts, *[max_len - num_new] * padding], seen

    @torch.no_grad()
    def draft(self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], num_tokens: int) -> Proposed:
        """See `Passes`; the whole round is captured, including the choice of tokens."""
        num_rows, num_steps = len(batch.lengths), max(batch.lengths)
        num_new = bucket(max(counts), 1, self._sizes.max_round_tokens)
        padded, seen = self._bucketed(starts, num_new + num_steps)
        draws = Draws.of(batch, num_tokens, len(padded))
        filters = () if draws is None else tuple(one is not None for one in draws.shaping)

        def work_by(way: TorchDecoder | KernelDecoder) -> Work:
            def work(places_2B: Tensor, *draws_tensors: Tensor) -> tuple[Tensor, ...]:
                of_draws = None if draws is None else draws.like(draws_tensors)
                choice = ChainChoice(num_steps, of_draws, num_tokens, find=self._find)
                # Every replay reads this batch's tensor again: the target's own memory, see `DraftBatch`.
                self._chain(way, batch.tokens_SL, places_2B, choice, num_new, seen)
                probs_BKV = choice.draft_probs_BKV
                return (choice.token_ids_BK,) if probs_BKV is None else (choice.token_ids_BK, probs_BKV)

            return work

        ids_BK, *probs = self._graphs.run(
            ("draft", len(padded), num_new, num_steps, seen, filters),
            work_by(self.torch),
            pinned([padded, [*counts, *[1] * (len(padded) - num_rows)]], self.torch.device),
            *(() if draws is None else draws.tensors()),
            instead=work_by(self.kernels) if self.kernels is not None and self.kernels.fits(num_new) else None,
        )
        return Proposed(ids_BK[:num_rows], probs[0][:num_rows] if probs else None)

    def _chain(
        self,
        way: TorchDecoder | KernelDecoder,
        tokens_SL: Tensor,
        places_2B: Tensor,
        choice: ChainChoice,
        num_new: int,
        seen: int,
    ) -> None:
        """Let `choice` choose all tokens of a draft, as a function of tensors only.

        Args:
            way: runs the passes.
            tokens_SL: known tokens.
            places_2B: each row's first position that is not cached, and its number of new tokens.
            choice: chooses each step's tokens.
            num_new: the largest number of new tokens.
            seen: number of positions that the passes read.
        """
        starts_B, counts_B = places_2B
        device = tokens_SL.device
        rows_B1 = torch.arange(len(starts_B), device=device)[:, None]
        columns_BQ = starts_B[:, None] + torch.arange(num_new, device=device)
        ids_BQ = tokens_SL[rows_B1, columns_BQ.clamp(max=tokens_SL.shape[1] - 1)]
        logits_BQV, _, _ = self._run(way, ids_BQ, starts_B, seen)
        logits_BV = logits_BQV[rows_B1[:, 0], counts_B - 1]
        ends_B = starts_B + counts_B
        for step in range(choice.num_steps):
            token_B = choice.take(logits_BV[:, : choice.vocab_tokens])
            if step + 1 < choice.num_steps:
                logits_BQV, _, _ = self._run(way, token_B[:, None], ends_B + step, seen)
                logits_BV = logits_BQV[:, 0]
