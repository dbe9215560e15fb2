"""Continuous batching around one loop of propose, verify and commit; no Ray, Redis or HTTP enters."""
