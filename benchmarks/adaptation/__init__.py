"""Experiments on a drafter's adaptation to a stream of queries, replayed from recorded answers."""
