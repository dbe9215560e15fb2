"""The weight layout of compiled products: tiles of 32 outputs, stored in the order in which they are read.

A tile holds 32 biases and then, step by step, the 32 outputs' weights for that step's inputs. A step is four bytes of a
row: a pair of bfloat16, as AVX512-BF16's dot product takes them, or one float32.

Shapes: O outputs, I inputs, T tiles, S steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 32
"""Outputs per tile: two vectors of sixteen."""
STEP_BYTES = 4


def tiled(weight_OI: Tensor, bias_O: Tensor | None, num_parts: int = 1) -> Tensor:
    """The weights as tiles, `[T, 1 + S, WIDTH]` int32.

    Args:
        weight_OI: I is even in bfloat16.
        bias_O: None is zeros.
        num_parts: equal parts of the outputs, each beginning with a new tile; padded with zeros.
    """
    bias_O = weight_OI.new_zeros(len(weight_OI)) if bias_O is None else bias_O
    parts = zip(weight_OI.chunk(num_parts), bias_O.chunk(num_parts), strict=True)
    return torch.cat([_tiled(weight_PI, bias_P) for weight_PI, bias_P in parts])


def _tiled(weight_PI: Tensor, bias_P: Tensor) -> Tensor:
    padding = -len(weight_PI) % WIDTH
    biases = F.pad(bias_P.float(), (0, padding)).view(torch.int32).view(-1, 1, WIDTH)
    steps_PS = F.pad(weight_PI, (0, 0, 0, padding)).contiguous().view(torch.int32)
    return torch.cat((biases, steps_PS.view(len(biases), WIDTH, -1).transpose(1, 2)), dim=1)


def untiled(tiles: Tensor, dtype: torch.dtype, num_outputs: int, num_parts: int = 1) -> tuple[Tensor, Tensor]:
    """Undo `tiled`: weights `[O, I]` and biases `[O]`."""
    size = num_outputs // num_parts
    parts = tiles.view(num_parts, -1, *tiles.shape[1:])
    weight_NPI = parts[:, :, 1:].transpose(2, 3).flatten(1, 2)[:, :size].contiguous().view(dtype)
    bias_NP = parts[:, :, 0].flatten(1, 2)[:, :size].contiguous().view(torch.float32)
    return weight_NPI.flatten(0, 1), bias_NP.flatten().to(dtype)
