"""From a checked request body to its answer: queries, the streams of their deltas, and server-sent events."""
