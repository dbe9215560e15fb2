"""A drafter without weights that looks its tokens up in the row itself, so that each is its only candidate."""

from __future__ import annotations

import torch

from osd.ports.drafter import Drafter
from osd.records.drafter_id import DrafterId
from osd.records.proposal import DraftBatch, Proposal

_LONGEST = 3


class LookupDrafter:
    """Proposes what followed the last time that the row ended in the same tokens, up to three of them; or nothing."""

    id = DrafterId("lookup", 1)
    needs_hidden = False

    def propose(self, batch: DraftBatch) -> Proposal:
        found = [
            _continuation(batch.tokens_SL[row, :num].tolist(), length)
            for row, (num, length) in enumerate(zip(batch.num_tokens, batch.lengths, strict=True))
        ]
        width = max(map(len, found))
        ids_BK = torch.tensor([[*own, *[0] * (width - len(own))] for own in found], dtype=torch.long)
        return Proposal(ids_BK.view(len(found), width), [len(own) for own in found], None, self.id)

    def reset_row(self, row: int) -> None: ...

    def swap_rows(self, row: int, other: int) -> None: ...

    def adopt(self, other: Drafter) -> None: ...


def _continuation(ids: list[int], length: int) -> list[int]:
    for size in range(min(_LONGEST, len(ids) - 1), 0, -1):
        suffix = ids[-size:]
        for start in range(len(ids) - size - 1, -1, -1):
            if ids[start : start + size] == suffix:
                return ids[start + size : start + size + length]
    return []
