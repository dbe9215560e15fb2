"""The most likely token of every row of logits, by whatever reads them fastest on their device."""

from __future__ import annotations

from torch import Tensor

from osd.kernels.cpu.verdicts.logits import can_look_through, greatest
from osd.kernels.gpu.available import can_use_kernels


def most_likely(logits: Tensor) -> Tensor:
    """The index of the greatest logit along the last dimension; of equal ones, the first."""
    if can_look_through(logits):
        return greatest(logits)
    if can_use_kernels(logits.device) and logits.stride(-1) == 1:
        from osd.kernels.gpu.highest import highest

        return highest(logits.flatten(0, -2)).view(logits.shape[:-1])
    # On a CPU torch looks through float32 four times as fast as through bfloat16, which it holds exactly.
    return (logits.float() if logits.device.type == "cpu" else logits).argmax(dim=-1)
