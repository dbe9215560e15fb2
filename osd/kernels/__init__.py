"""What computes: torch's operations as the reference, and the kernels of a CPU and of a GPU."""
