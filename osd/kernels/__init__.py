"""What computes, behind one door (`backend.py`): the reference, and the kernels of a CPU and of a GPU held to it."""
