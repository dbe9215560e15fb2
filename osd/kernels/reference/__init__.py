"""Decoder layers and slot caches by torch's operations: what every kernel is held to."""
