"""Replacing what serves between two steps: drafter versions, and kernels."""
