"""Small outcomes for tests."""

from __future__ import annotations

import torch

from osd.records.outcome import ACCEPTED, BONUS, Outcome, Round
from osd.records.outcome_arrays import pack_hidden, pack_top_k


def sample_outcome(request_id: str = "r-1", *, outputs: int = 4, top_k: int = 3, hidden_size: int = 8) -> Outcome:
    """An outcome with two prompt tokens whose arrays have the right shapes; same arguments, same outcome."""
    top_ids, top_logprobs, _ = pack_top_k(
        torch.arange(outputs * top_k).reshape(outputs, top_k), -torch.rand(outputs, top_k, generator=_generator())
    )
    return Outcome(
        request_id=request_id,
        domain="default",
        target_id="tiny",
        drafter_kind="feature",
        created_at_s=1.7e9,
        prompt_ids=(5, 6),
        output_ids=tuple(range(outputs)),
        output_kinds=bytes([BONUS] + [ACCEPTED] * (outputs - 1)),
        rounds=(Round(3, outputs - 1, outputs - 1),),
        top_k=top_k,
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        hidden_size=hidden_size,
        hidden=pack_hidden(torch.randn(outputs + 1, hidden_size, generator=_generator())),
    )


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
