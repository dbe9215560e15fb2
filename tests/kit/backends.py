"""Back ends that tests choose from: without a decoder of their own, without kernels, or with captured rounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from osd.assembly.kernels import backend_for
from osd.kernels.backend import Backend, Decoder, RowMemory, Sizes
from osd.kernels.gpu.backend import GpuBackend
from osd.kernels.gpu.graphs import Capture
from osd.kernels.reference.backend import TorchBackend

TORCH = TorchBackend()


class Undecoded(TorchBackend):
    """Knows no architecture, so that transformers' own forward computes all passes."""

    def decoder(
        self,
        model: Any,
        sizes: Sizes,
        *,
        kept: RowMemory | None,
        frozen: bool,
        is_int4: bool,
        hidden_layers: Sequence[int] = (),
    ) -> Decoder | None:
        return None


def fastest(device: torch.device = torch.device("cpu")) -> Backend:  # noqa: B008 - a value
    """What an engine would choose on a device."""
    return backend_for(device)


def captured_by(capture: Capture, *, has_kernels: bool = False) -> GpuBackend:
    """A GPU's rounds, on any device; with its kernels where Triton's interpreter runs them."""
    return GpuBackend(lambda: capture, has_kernels=has_kernels)
