"""Replaces drafter versions and kernels between two steps, while the engine serves."""
