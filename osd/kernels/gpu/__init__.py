"""The GPU back end: rounds captured as CUDA graphs, and Triton kernels that fuse many small operations."""
