"""Triton kernels for a GPU's rounds: what torch would do in many small launches, or by reading more than it needs."""
