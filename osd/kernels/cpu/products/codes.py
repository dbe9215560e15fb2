"""Weights quantised to four or eight bits: `low + code * step`, one low and step per 32 inputs, as in llama.cpp's Q4_1.

A tile holds 32 biases and then, for each block of 32 inputs, the outputs' steps and lows (float16) and codes. Each
lane's four bytes hold the codes of four steps (with eight bits: of two), each of two inputs.

Shapes: O outputs, I inputs, B = I / 32 blocks, T tiles.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.kernels.cpu.products.tiling import WIDTH

BLOCK = 32
"""Inputs per block, which share a low and a step."""
SCALES_BYTES = 2 * WIDTH * 2
"""Bytes of a block's steps and lows."""
MOST = {4: 15, 8: 127}
"""The largest code by number of bits; with eight bits 127, since bfloat16 counts units only up to there."""
_STEPS = BLOCK // 2


def rounded(weight_OI: Tensor, bits: int) -> Tensor:
    """The weights after quantising and dequantising, in their own dtype."""
    low_OB1, step_OB1, codes_OBK = _coded(weight_OI, bits)
    return (low_OB1 + codes_OBK * step_OB1).view(weight_OI.shape).to(weight_OI.dtype)


def tiled_codes(weight_OI: Tensor, bias_O: Tensor | None, num_parts: int = 1, *, bits: int) -> Tensor:
    """As `osd.kernels.cpu.products.tiling.tiled`, but quantised; I is a multiple of 32. int32 `[T, ...]`."""
    bias_O = weight_OI.new_zeros(len(weight_OI)) if bias_O is None else bias_O
    parts = zip(weight_OI.chunk(num_parts), bias_O.chunk(num_parts), strict=True)
    return torch.cat([_tiled(weight_PI, bias_P, bits) for weight_PI, bias_P in parts])


def _tiled(weight_PI: Tensor, bias_P: Tensor, bits: int) -> Tensor:
    padding = -len(weight_PI) % WIDTH
    biases = F.pad(bias_P.float(), (0, padding)).view(torch.int32).view(-1, WIDTH)
    low_PB1, step_PB1, codes_PBK = _coded(F.pad(weight_PI, (0, 0, 0, padding)), bits)
    num_tiles, num_blocks = len(biases), codes_PBK.shape[1]

    def by_block(scale_PB1: Tensor) -> Tensor:
        halves = scale_PB1.half().view(num_tiles, WIDTH, num_blocks).transpose(1, 2)
        return halves.flatten().view(torch.int32).view(num_tiles, num_blocks, WIDTH // 2)

    # Dimensions: tile, half, lane; block, group, step, input of the step.
    in_lane = 16 // bits
    codes = codes_PBK.to(torch.int64).view(num_tiles, 2, WIDTH // 2, num_blocks, _STEPS // in_lane, in_lane, 2)
    shifts = bits * torch.arange(in_lane)[:, None] + 16 * torch.arange(2)
    lanes = (codes << shifts).sum(dim=(-2, -1)).permute(0, 3, 4, 1, 2).flatten(2)
    lanes = torch.where(lanes >= 2**31, lanes - 2**32, lanes).to(torch.int32)
    blocks = torch.cat((by_block(step_PB1), by_block(low_PB1), lanes), dim=2)
    return torch.cat((biases, blocks.flatten(1)), dim=1)


def _coded(weight_OI: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lows and steps `[O, B, 1]`, rounded to float16, and codes `[O, B, 32]`; all as float32."""
    blocks = weight_OI.float().view(len(weight_OI), -1, BLOCK)
    low, high = blocks.amin(dim=2, keepdim=True), blocks.amax(dim=2, keepdim=True)
    low, step = low.half().float(), ((high - low) / MOST[bits]).half().float()
    codes = ((blocks - low) / step.clamp(min=torch.finfo(torch.float16).tiny)).round().clamp(0, MOST[bits])
    return low, step, codes
