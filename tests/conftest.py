"""For every test: one thread for tensor work, since tiny operations on a shared machine only wait for each other."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
