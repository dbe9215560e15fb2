"""Prefill: processes a prompt in chunks."""

from __future__ import annotations

import time
from typing import NamedTuple

from osd.engine.round import Verified
from osd.engine.sequence import Sequence
from osd.models.target import Target
from osd.verify.verdict import verify_rows


class Chunk(NamedTuple):
    """A chunk of a prompt that was processed."""

    num_tokens: int
    first: Verified | None
    """The query's first token, if its prompt is now complete."""


def read_chunk(target: Target, sequence: Sequence, most_tokens: int) -> Chunk:
    """Run a target pass over the next of a query's known tokens, at most `most_tokens` of them."""
    started_s = time.perf_counter()
    start, row = sequence.num_cached, sequence.row
    end = min(start + most_tokens, sequence.num_tokens)
    is_last = end == sequence.num_tokens
    ids_1Q = target.tokens_SL[row : row + 1, start:end]
    logits = target.read(row, ids_1Q, [start], logits="last" if is_last else "none").logits
    first = None if logits is None else Verified(verify_rows(logits, [sequence], None), logits)
    sequence.num_cached = end
    sequence.prefill_ms += (time.perf_counter() - started_s) * 1e3
    return Chunk(end - start, first)
