"""For every test: one thread for tensor work, since tiny operations on a shared machine only wait for each other.

And Triton's kernels by its interpreter where there is no GPU; that is settled when triton is first imported.
"""

from __future__ import annotations

import os

import torch

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
