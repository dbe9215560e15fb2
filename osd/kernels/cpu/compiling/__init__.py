"""Compiling the kernels of `osd.kernels.cpu` before they are needed, and keeping them."""
