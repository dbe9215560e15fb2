"""Compiles the kernels of `osd.kernels.cpu` ahead of time, and stores them."""
