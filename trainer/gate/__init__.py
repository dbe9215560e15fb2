"""Decides whether a candidate is published, from held-out records, and publishes it."""
