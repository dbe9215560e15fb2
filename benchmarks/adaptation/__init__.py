"""How a drafter adapts to a stream of queries, replayed from recorded answers; `python -m benchmarks.adaptation`."""
