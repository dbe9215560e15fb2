"""Metrics of HTTP requests."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# No `_created` series: Prometheus does not use them in its text format, and they repeat each metric's help text.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library left it untyped


class HttpMetrics:
    """Counters and histograms of one app, in its own registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "osd_http_requests",
            "HTTP requests answered, by method, route and status.",
            ("method", "route", "status"),
            registry=registry,
        )
        self._duration = Histogram(
            "osd_http_request_duration_seconds",
            "Seconds from an HTTP request's first byte to its answer's last.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "osd_time_to_first_token_seconds",
            "Seconds from an HTTP request's first byte to the first token of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )

    def observe_request(self, method: str, route: str, status: int, duration_s: float) -> None:
        """Count one finished request. `route` is the path template, which keeps the number of labels low."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._duration.labels(route).observe(duration_s)

    def observe_first_token(self, route: str, duration_s: float) -> None:
        """Record the time to the first token of one request."""
        self._first_token.labels(route).observe(duration_s)
