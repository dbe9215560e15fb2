"""The back ends behind one interface (`backend.py`): the reference, and CPU and GPU kernels tested against it."""
