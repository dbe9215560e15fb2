"""Compiling the kernels of `osd.models.compiled` before they are needed, and keeping them."""
