"""Metrics of finished queries: where their time went, how long they were, and how they ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram

from osd.monitor.labels import Domains
from osd.records.query import FinishReason, TokenDelta

_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0)
_TOKENS = (1, 8, 32, 128, 512, 2048, 8192, 32_768, 131_072)


class QueryMetrics:
    """Observed at each query's last delta.

    Args:
        registry: of the app.
        max_domains: domains that are labels of their own; the others are `other`.
        clock: monotonic seconds.
    """

    def __init__(
        self, registry: CollectorRegistry, max_domains: int, *, clock: Callable[[], float] = monotonic
    ) -> None:
        self._domains = Domains(max_domains, on_forgotten=self._forget, clock=clock)
        self._finished = Counter(
            "osd_finished_queries", "Queries answered, by how they ended and by domain.", ("reason", "domain"),
            registry=registry,
        )  # fmt: skip

        def seconds(name: str, meaning: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
            return Histogram(f"osd_{name}_seconds", meaning, buckets=buckets, registry=registry)

        def tokens(name: str, meaning: str) -> Histogram:
            return Histogram(f"osd_{name}_tokens", meaning, buckets=_TOKENS, registry=registry)

        self._queue = seconds("query_queue", "Seconds that a query waited for a row.")
        self._prefill = seconds("query_prefill", "Seconds in which a query's prompt was read.")
        self._decode = seconds("query_decode", "Seconds of a query's rounds, drafting and verifying.")
        self._total = seconds("query", "Seconds from a query's arrival at the engine to its end.")
        self._per_token = seconds(
            "time_per_output_token", "Seconds of decoding for each output token after the first.", _TOKEN_SECONDS
        )
        self._prompt = tokens("query_prompt", "Prompt tokens of a query.")
        self._output = tokens("query_output", "Output tokens of a query.")

    def _forget(self, domain: str) -> None:
        for reason in get_args(FinishReason):
            with suppress(KeyError):  # none ended so
                self._finished.remove(reason, domain)

    def observe(self, delta: TokenDelta, domain: str) -> None:
        """Count a finished query by its last delta."""
        self._finished.labels(delta.finish_reason or "error", self._domains.label(domain)).inc()
        stats = delta.stats
        if stats is None:
            return
        decode_s = (stats.draft_ms + stats.verify_ms) / 1e3
        self._queue.observe(stats.queue_ms / 1e3)
        self._prefill.observe(stats.prefill_ms / 1e3)
        self._decode.observe(decode_s)
        self._total.observe(stats.total_ms / 1e3)
        if stats.output_tokens > 1:
            self._per_token.observe(decode_s / (stats.output_tokens - 1))
        self._prompt.observe(stats.prompt_tokens)
        self._output.observe(stats.output_tokens)
