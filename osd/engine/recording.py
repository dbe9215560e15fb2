"""Makes the outcome of a finished query. The engine's thread only copies; packing is left to the recorder's thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import torch

from osd.engine.sequence import Sequence
from osd.models.target import Target
from osd.records.outcome import Outcome, Sampling, Timings
from osd.records.outcome_arrays import pack_hidden, pack_ids, pack_top_k
from osd.records.query import QueryStats
from osd.verify.top_logprobs import TopLogprobs


def outcome_maker(
    sequence: Sequence,
    stats: QueryStats,
    target: Target,
    *,
    drafter_kind: str,
    prompt_hidden_tokens: int | None,
    engine_id: str,
) -> Callable[[], Outcome]:
    """Copy a finishing query's row now; returns a function that makes the outcome later, on another thread.

    Args:
        sequence: the query, which still holds its row.
        stats: its statistics.
        target: holds its hidden states.
        drafter_kind: the kind of drafter that is trained on it.
        prompt_hidden_tokens: number of prompt positions whose hidden states are recorded besides the output's; None: no
            hidden states are needed.
        engine_id: see `Outcome`.
    """
    request = sequence.request
    prompt_len, num_read = len(request.prompt_ids), len(request.prompt_ids) + len(sequence.output_ids) - 1
    start, copied = 0, _no_hidden
    if prompt_hidden_tokens is not None:
        start = max(prompt_len - prompt_hidden_tokens, 0)
        copied = target.copy_hidden(sequence.row, start, num_read)
    tops, rejected = tuple(sequence.tops), tuple(sequence.rejected)
    output_ids, kinds, rounds = tuple(sequence.output_ids), bytes(sequence.kinds), tuple(sequence.rounds)
    reason, created_at_s = sequence.finish_reason or "cancelled", time.time()

    def make() -> Outcome:
        hidden_TH = copied()
        packed_ids, packed_logprobs, top_k = _packed(tops)
        rejected_top_ids, rejected_top_logprobs, rejected_top_k = _packed(one.top for one in rejected)
        params = request.params
        return Outcome(
            request_id=request.request_id,
            domain=request.domain,
            target_id=target.target_id,
            drafter_kind=drafter_kind,
            created_at_s=created_at_s,
            prompt_ids=request.prompt_ids,
            output_ids=output_ids,
            output_kinds=kinds,
            rounds=rounds,
            top_k=top_k,
            top_ids=packed_ids,
            top_logprobs=packed_logprobs,
            hidden_size=hidden_TH.shape[1],
            hidden_start=start,
            hidden=pack_hidden(hidden_TH),
            sampling=Sampling(
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                min_p=params.min_p,
                presence_penalty=params.presence_penalty,
                frequency_penalty=params.frequency_penalty,
            ),
            timings=Timings(
                queue_ms=stats.queue_ms,
                prefill_ms=stats.prefill_ms,
                draft_ms=stats.draft_ms,
                verify_ms=stats.verify_ms,
                total_ms=stats.total_ms,
            ),
            finish_reason=reason,
            rejected_top_k=rejected_top_k,
            rejected_ids=pack_ids([token for one in rejected for token in one.ids]),
            rejected_top_ids=rejected_top_ids,
            rejected_top_logprobs=rejected_top_logprobs,
            engine_id=engine_id,
            domain_from=request.domain_from,
        )

    return make


def _packed(tops: Iterable[TopLogprobs]) -> tuple[bytes, bytes, int]:
    """`pack_top_k` of all rounds' positions together; empty for no rounds."""
    read = [top.read() for top in tops]
    if not read:
        return b"", b"", 0
    _, ids, logprobs = zip(*read, strict=True)
    return pack_top_k(torch.cat(ids), torch.cat(logprobs))


def _no_hidden() -> torch.Tensor:
    return torch.empty(0, 0)
