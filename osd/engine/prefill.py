"""Prefill: processes a prompt in chunks."""

from __future__ import annotations

import time
from typing import NamedTuple

from osd.engine.round import Verified
from osd.engine.sequence import Sequence
from osd.kernels.backend import Wanted
from osd.models.target import Target
from osd.records.query import TokenLogprob
from osd.verify.logits import Logits
from osd.verify.top_logprobs import top_logprobs
from osd.verify.verdict import verify_rows


class Chunk(NamedTuple):
    """A chunk of a prompt that was processed."""

    num_tokens: int
    first: Verified | None
    """The query's first token, if its prompt is now complete; none if it cannot be answered."""


def read_chunk(target: Target, sequence: Sequence, most_tokens: int) -> Chunk:
    """Run a target pass over the next of a query's known tokens, at most `most_tokens` of them."""
    started_s = time.perf_counter()
    start, row = sequence.num_cached, sequence.row
    end = min(start + most_tokens, sequence.num_tokens)
    is_last, first = end == sequence.num_tokens, None
    ids_1Q = target.tokens_SL[row : row + 1, start:end]
    wanted: Wanted = "all" if sequence.wants_prompt_logprobs else "last" if is_last else "none"
    logits = target.read(row, ids_1Q, [start], logits=wanted).logits
    if wanted == "all":
        assert logits is not None
        if not bool(logits.is_finite_BQ.all()):
            return Chunk(end - start, Verified([[]], logits))
        sequence.prompt_logprobs += _logprobs_of_prompt(logits, sequence, start)
        logits = logits.replaced(logits.tensor_BQV[:, -1:].contiguous())
    if is_last:
        assert logits is not None
        first = Verified(verify_rows(logits, [sequence], None), logits)
    sequence.num_cached = end
    sequence.prefill_ms += (time.perf_counter() - started_s) * 1e3
    return Chunk(end - start, first)


def _logprobs_of_prompt(logits: Logits, sequence: Sequence, start: int) -> tuple[TokenLogprob, ...]:
    """The log-probabilities of the prompt's tokens that follow positions `start`, `start + 1`, … of a pass."""
    asked = sequence.request.params.prompt_logprobs
    tokens = sequence.request.prompt_ids[start + 1 : start + 1 + logits.num_positions]
    if asked is None or not tokens:
        return ()
    [top] = top_logprobs(logits, [tokens], max(asked, 1))
    return top.cut(len(tokens), asked).for_client(tokens)
