"""A decoder's layers compiled for a CPU by numba; `layers.py` is the way in."""
