"""A drafter that offers what the target is least likely to emit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from osd.ports.drafter import Drafter
from osd.records.drafter_id import DrafterId
from osd.records.proposal import DraftBatch, Proposal
from osd.records.query import SamplingParams
from osd.verify.shaping import draw, uniforms
from tests.kit.engine_kit import VOCAB_TOKENS
from tests.statistical.exact import CASES, Exact


def _place(output: list[int]) -> int:
    """Of an output among all of its length, in `Exact.tables`."""
    return sum(token * VOCAB_TOKENS**place for place, token in enumerate(reversed(output)))


class CertainDrafter:
    """Draws nothing: its one candidate is the target's most likely token, or in every third position the second."""

    id = DrafterId("certain", 1)
    needs_hidden = False

    def __init__(self, exact: Mapping[str, Exact]) -> None:
        self._known = {
            params.temperature: (len(prompt), exact[name].tables) for name, (params, prompt) in CASES.items()
        }
        self._candidate = cache(self._best)

    def propose(self, batch: DraftBatch) -> Proposal:
        ids_BK = torch.zeros(len(batch.lengths), max(batch.lengths), dtype=torch.long)
        for row, length in enumerate(batch.lengths):
            known = batch.tokens_SL[row, : batch.num_tokens[row]].tolist()
            for step in range(length):
                known.append(self._candidate(batch.params[row].temperature, tuple(known)))
                ids_BK[row, step] = known[-1]
        return Proposal(ids_BK, batch.lengths, None, self.id)

    def _best(self, temperature: float, known: tuple[int, ...]) -> int:
        prompt_len, tables = self._known[temperature]
        output = list(known[prompt_len:])
        if len(output) >= len(tables):
            return 0
        return int(tables[len(output)][_place(output)].topk(2).indices[int(len(known) % 3 == 0)])

    def reset_row(self, row: int) -> None: ...

    def swap_rows(self, row: int, other: int) -> None: ...

    def adopt(self, other: Drafter) -> None: ...


class AdversarialDrafter:
    """Offers what the target is least likely to emit, half of the rounds as a sure thing, half as a peaked draw."""

    id = DrafterId("adversarial", 1)
    needs_hidden = False

    def __init__(self, exact: Mapping[str, Exact]) -> None:
        self._known = {
            params.temperature: (len(prompt), exact[name].tables) for name, (params, prompt) in CASES.items()
        }
        self._rounds = 0

    def adopt(self, other: Drafter) -> None:
        """Nothing is kept by row."""

    def propose(self, batch: DraftBatch) -> Proposal:
        self._rounds += 1
        num_rows, num_steps = len(batch.lengths), max(batch.lengths)
        ids_BK = torch.zeros(num_rows, num_steps, dtype=torch.long)
        probs_BKV = torch.zeros(num_rows, num_steps, VOCAB_TOKENS)
        for row in range(num_rows):
            known = batch.tokens_SL[row, : batch.num_tokens[row]].tolist()
            for step in range(batch.lengths[row]):
                probs_V = self._draft(known, batch.params[row])
                choice = int(draw(probs_V[None], torch.tensor(uniforms(batch.generators[row], 1, 1))))
                ids_BK[row, step], probs_BKV[row, step] = choice, probs_V
                known.append(choice)
        return Proposal(token_ids_BK=ids_BK, lengths=batch.lengths, draft_probs_BKV=probs_BKV, drafter=self.id)

    def _draft(self, known: list[int], params: SamplingParams) -> Tensor:
        prompt_len, tables = self._known.get(params.temperature, (len(known), []))  # calibration is greedy
        output = known[prompt_len:]
        least = 0
        if len(output) < len(tables):
            # Of the tokens that the target may emit at all: these are kept now and then, and must be kept rightly.
            target_V = tables[len(output)][_place(output)]
            least = int(target_V.where(target_V > 0, 2.0).argmin())
        peaked_V = torch.full((VOCAB_TOKENS,), 0.0 if self._rounds % 2 else 0.3 / VOCAB_TOKENS)
        peaked_V[least] += 1.0 - float(peaked_V.sum())
        return peaked_V

    def reset_row(self, row: int) -> None: ...

    def swap_rows(self, row: int, other: int) -> None: ...
