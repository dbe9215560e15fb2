"""A drafter that offers what the target is least likely to emit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from osd.ports.drafter import Drafter, SwapIn
from osd.records.proposal import DraftBatch, Proposal
from osd.records.query import SamplingParams
from osd.verify.shaping import draw, uniforms
from tests.kit.engine_kit import VOCAB_TOKENS
from tests.statistical.exact import CASES, Exact


class AdversarialDrafter:
    """Offers what the target is least likely to emit, half of the rounds as a sure thing, half as a peaked draw."""

    kind = "adversarial"
    version = 1

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
        return Proposal(
            token_ids_BK=ids_BK, lengths=batch.lengths, draft_probs_BKV=probs_BKV, drafter_version=self.version
        )

    def _draft(self, known: list[int], params: SamplingParams) -> Tensor:
        prompt_len, tables = self._known.get(params.temperature, (len(known), []))  # calibration is greedy
        output = known[prompt_len:]
        least = 0
        if len(output) < len(tables):
            cell = sum(token * VOCAB_TOKENS**place for place, token in enumerate(reversed(output)))
            # Of the tokens that the target may emit at all: these are kept now and then, and must be kept rightly.
            target_V = tables[len(output)][cell]
            least = int(target_V.where(target_V > 0, 2.0).argmin())
        peaked_V = torch.full((VOCAB_TOKENS,), 0.0 if self._rounds % 2 else 0.3 / VOCAB_TOKENS)
        peaked_V[least] += 1.0 - float(peaked_V.sum())
        return peaked_V

    def reset_row(self, row: int) -> None: ...

    def swap_rows(self, row: int, other: int) -> None: ...

    def state(self) -> dict[str, Tensor]:
        return {}

    def prepare(self, state: Mapping[str, Tensor], version: int) -> SwapIn:
        raise NotImplementedError
