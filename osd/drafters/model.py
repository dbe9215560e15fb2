"""The `model` drafter, serving side: any small causal LM with the target's vocabulary, over its own slot cache.

Shapes: B rows, Q new positions, K proposed tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from osd.drafters.choose import ChainChoice, Draws
from osd.drafters.weights import check_state, model_state
from osd.kernels.gpu.graphs import GraphPool, Work, bucket
from osd.machine.transfer import beside, upload, used_here
from osd.models.slot_model import SlotModel
from osd.ports.drafter import Drafter, SwapIn
from osd.records.proposal import DraftBatch, Proposal

_CATCH_UP_TOKENS = 256
"""Most positions read in one pass while catching up with a row, so that no long prompt needs a giant pass."""

_ROUND_TOKENS = 17
"""Most positions that a round adds: the longest speculation, and the token after it."""


class ModelDrafter:
    """Serves one causal LM for all rows.

    Args:
        model: a loaded causal LM with the target's vocabulary.
        num_slots: rows.
        max_context_tokens: longest row.
        target_vocab_tokens: size of the target's output.
    """

    kind = "model"

    def __init__(self, model: Any, *, num_slots: int, max_context_tokens: int, target_vocab_tokens: int) -> None:
        self.version = 0
        self._lm = SlotModel(
            model,
            num_slots=num_slots,
            max_context_tokens=max_context_tokens,
            max_new_tokens=_CATCH_UP_TOKENS,
            max_round_tokens=_ROUND_TOKENS,
        )
        self._vocab_tokens = target_vocab_tokens
        self._end = [0] * num_slots
        """Positions of each row that the drafter has read and that are known to be right."""

    def reset_row(self, row: int) -> None:
        """A new query starts in the row. What the last one left is zeroed: even masked, a NaN would spoil it."""
        # Beyond what is known lie its own proposals, and padding beside rows with more to read.
        self._lm.clear_row(row, 0, self._end[row] + _CATCH_UP_TOKENS)
        self._end[row] = 0

    def swap_rows(self, row: int, other: int) -> None:
        """Let two rows change places."""
        self._lm.swap_rows(row, other, max(self._end[row], self._end[other]))
        self._end[row], self._end[other] = self._end[other], self._end[row]

    def adopt(self, other: Drafter) -> None:
        """See `Drafter`."""
        assert isinstance(other, ModelDrafter)
        self._lm.adopt(other._lm, other._end)
        other._lm.close()
        self._end = other._end

    def state(self) -> dict[str, Tensor]:
        """What a weight version carries."""
        return model_state(self._lm.model)

    def prepare(self, state: Mapping[str, Tensor], version: int) -> SwapIn:
        """See `Drafter`. The swap copies in place: captured work reads this very memory."""
        expected = self.state()
        check_state(state, expected)
        with beside(self._lm.device):
            copies = {name: tensor.to(expected[name], copy=True) for name, tensor in state.items()}

        def swap_in() -> None:
            self._lm.model.load_state_dict({name: used_here(tensor) for name, tensor in copies.items()}, strict=False)
            self._lm.weights_changed()
            self._lm.clear_non_finite()
            self.version = version

        return swap_in

    @torch.no_grad()
    def propose(self, batch: DraftBatch) -> Proposal:
        """A chain of `max(lengths)` steps for all rows; rows that want fewer are cut."""
        if self._lm.graphs is not None:
            return self._replay(self._lm.graphs, batch)
        choice = ChainChoice(max(batch.lengths), Draws.of(batch, self._vocab_tokens), self._vocab_tokens)
        logits_BV = self._catch_up(batch)
        for step in range(choice.num_steps):
            token_B = choice.take(logits_BV[:, : self._vocab_tokens])
            if step + 1 < choice.num_steps:
                starts = [num_tokens + step for num_tokens in batch.num_tokens]
                output = self._lm.forward(0, token_B[:, None], starts)
                logits_BV = output.logits_BQV[:, 0]
        return choice.proposal(batch, self.version)

    def _replay(self, graphs: GraphPool, batch: DraftBatch) -> Proposal:
        """The whole round as captured work: one pass over what is new, then the chain, choices and all."""
        self._read_ahead(batch)
        num_rows, num_steps = len(batch.lengths), max(batch.lengths)
        starts = [min(end, num - 1) for end, num in zip(self._end, batch.num_tokens, strict=False)]
        counts = [num - start for num, start in zip(batch.num_tokens, starts, strict=True)]
        num_new = bucket(max(counts), 1, _ROUND_TOKENS)
        padded, seen = self._lm.bucketed(starts, num_new + num_steps)
        draws = Draws.of(batch, self._vocab_tokens, len(padded))
        filters = () if draws is None else tuple(one is not None for one in draws.shaping)

        def work_that_reads(by_kernels: bool) -> Work:
            def work(places_2B: Tensor, *draws_tensors: Tensor) -> tuple[Tensor, ...]:
                of_draws = None if draws is None else draws.like(draws_tensors)
                choice = ChainChoice(num_steps, of_draws, self._vocab_tokens)
                self._chain(batch.tokens_SL, places_2B, choice, num_new, seen, by_kernels)
                probs_BKV = choice.draft_probs_BKV
                return (choice.token_ids_BK,) if probs_BKV is None else (choice.token_ids_BK, probs_BKV)

            return work

        ids_BK, *probs = graphs.run(
            ("chain", len(padded), num_new, num_steps, seen, filters),
            work_that_reads(by_kernels=False),
            upload([padded, counts + [1] * (len(padded) - num_rows)], self._lm.device),
            *(() if draws is None else draws.tensors()),
            instead=work_that_reads(by_kernels=True) if self._lm.can_use_kernels(num_new) else None,
        )
        self._end[:num_rows] = batch.num_tokens
        return Proposal(ids_BK[:num_rows], batch.lengths, probs[0][:num_rows] if probs else None, self.version)

    def _chain(
        self, tokens_SL: Tensor, places_2B: Tensor, choice: ChainChoice, num_new: int, seen: int, by_kernels: bool
    ) -> None:
        """Let `choice` take every token of the chain, as a function of tensors alone.

        Args:
            tokens_SL: known tokens.
            places_2B: each row's first position that was not read, and how many there are.
            choice: chooses each step's tokens.
            num_new: the most that there are.
            seen: positions that the passes see.
            by_kernels: see `FusedLM`.
        """
        starts_B, counts_B = places_2B
        rows_B1 = torch.arange(len(starts_B), device=self._lm.device)[:, None]
        columns_BQ = starts_B[:, None] + torch.arange(num_new, device=self._lm.device)
        ids_BQ = tokens_SL[rows_B1, columns_BQ.clamp(max=tokens_SL.shape[1] - 1)]
        logits_BQV, _ = self._lm.read_on_device(ids_BQ, starts_B, seen, by_kernels=by_kernels)
        logits_BV = logits_BQV[rows_B1[:, 0], counts_B - 1]
        ends_B = starts_B + counts_B
        for step in range(choice.num_steps):
            token_B = choice.take(logits_BV[:, : self._vocab_tokens])
            if step + 1 < choice.num_steps:
                logits_BQV, _ = self._lm.read_on_device(token_B[:, None], ends_B + step, seen, by_kernels=by_kernels)
                logits_BV = logits_BQV[:, 0]

    def _read_ahead(self, batch: DraftBatch) -> None:
        """Bring rows with more to read than a round adds (a query's first, or after a pause) up to their last token."""
        for row, num_tokens in enumerate(batch.num_tokens):
            if num_tokens - self._end[row] <= _ROUND_TOKENS:
                continue
            for start in range(self._end[row], num_tokens - 1, _CATCH_UP_TOKENS):
                end = min(start + _CATCH_UP_TOKENS, num_tokens - 1)
                self._lm.forward(row, batch.tokens_SL[row : row + 1, start:end], [start], logits="none")
            self._end[row] = num_tokens - 1

    def _catch_up(self, batch: DraftBatch) -> Tensor:
        """Read all known tokens; the logits after each row's last one, `[B, V]`."""
        logits_BV: list[Tensor | None] = [None] * len(batch.num_tokens)
        while any(end < num for end, num in zip(self._end, batch.num_tokens, strict=False)):
            starts = [min(self._end[row], num - 1) for row, num in enumerate(batch.num_tokens)]
            counts = [min(num - start, _CATCH_UP_TOKENS) for num, start in zip(batch.num_tokens, starts, strict=True)]
            rows_B1 = torch.arange(len(starts), device=self._lm.device)[:, None]
            columns_BQ = upload(starts, self._lm.device)[:, None] + torch.arange(max(counts), device=self._lm.device)
            ids_BQ = batch.tokens_SL[rows_B1, columns_BQ.clamp(max=batch.tokens_SL.shape[1] - 1)]
            output = self._lm.forward(0, ids_BQ, starts)
            for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
                self._end[row] = start + count
                if self._end[row] == batch.num_tokens[row]:
                    logits_BV[row] = output.logits_BQV[row, count - 1]
        return torch.stack([row_V for row_V in logits_BV if row_V is not None])
