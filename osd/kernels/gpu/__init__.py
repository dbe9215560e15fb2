"""The GPU back end: rounds captured as CUDA graphs, and Triton kernels in the place of many small ones."""
