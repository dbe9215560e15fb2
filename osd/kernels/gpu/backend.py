"""The GPU back end's entry point: captured rounds, and Triton kernels if Triton and a C compiler are there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from osd.kernels.backend import Decoder, FeatureRound, RowMemory, Sizes, int4_refusal
from osd.kernels.gpu.decoder import GpuDecoder
from osd.kernels.gpu.feature_round import GpuFeatureRound
from osd.kernels.gpu.graphs import Capture, CudaCapture
from osd.kernels.reference.backend import TorchBackend
from osd.kernels.reference.drafting.eagle3_net import Eagle3Net
from osd.kernels.reference.drafting.feature_net import FeatureNet
from osd.kernels.reference.drafting.feature_round import cache_entries
from osd.kernels.reference.llama import is_llama
from osd.kernels.reference.logits import TorchLogits
from osd.kernels.reference.logits import most_likely as most_likely_by_torch
from osd.kernels.reference.rows import TorchRows
from osd.records.shared_rows import SharedRows
from osd.verify.logits import Logits

_log = logging.getLogger(__name__)


class GpuBackend:
    """See `osd.kernels.backend.Backend`.

    Args:
        new_capture: creates a capture function for one model's rounds.
        has_kernels: whether Triton kernels run on the device.
    """

    def __init__(self, new_capture: Callable[[], Capture], *, has_kernels: bool) -> None:
        self._new_capture, self._has_kernels = new_capture, has_kernels

    @classmethod
    def on(cls, device: torch.device) -> GpuBackend:
        """The back end with CUDA graphs."""
        return cls(partial(CudaCapture, device), has_kernels=can_use_kernels(device))

    def rows(self, num_slots: int, length: int, like: Tensor) -> RowMemory:
        """See `Backend`. Hidden states are copied to the host in a two-byte dtype rather than float32."""
        return TorchRows(num_slots, length, like, copied_as=torch.bfloat16)

    def logits(self, logits_BQV: Tensor) -> Logits:
        """See `Backend`."""
        return TorchLogits(logits_BQV, find=self.most_likely)

    def most_likely(self, logits: Tensor) -> Tensor:
        """See `Backend`."""
        return most_likely(logits) if self._has_kernels else most_likely_by_torch(logits)

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
        """See `Backend`."""
        if is_int4:
            raise int4_refusal(model)
        if not is_llama(model):
            return None
        assert kept is None or isinstance(kept, TorchRows)
        return GpuDecoder(
            model,
            sizes,
            kept=kept,
            make_logits=self.logits,
            find=self.most_likely,
            capture=self._new_capture(),
            has_kernels=self._has_kernels,
            hidden_layers=hidden_layers,
        )

    def feature_round(
        self,
        net: FeatureNet | Eagle3Net,
        shared: SharedRows,
        *,
        num_slots: int,
        max_context_tokens: int,
        max_length: int,
    ) -> FeatureRound:
        """See `Backend`."""
        if isinstance(net, Eagle3Net):
            return TorchBackend().feature_round(
                net, shared, num_slots=num_slots, max_context_tokens=max_context_tokens, max_length=max_length
            )
        return GpuFeatureRound(
            net,
            shared,
            num_slots=num_slots,
            length=cache_entries(net.config, max_context_tokens, max_length),
            max_length=max_length,
            find=self.most_likely,
            capture=self._new_capture(),
            has_kernels=self._has_kernels,
        )


def most_likely(logits: Tensor) -> Tensor:
    """See `osd.kernels.reference.logits.MostLikely`."""
    if logits.stride(-1) != 1:
        return most_likely_by_torch(logits)
    from osd.kernels.gpu.highest import highest

    return highest(logits.flatten(0, -2)).view(logits.shape[:-1])


def can_use_kernels(device: torch.device) -> bool:
    """Whether Triton kernels run on this device; tries the smallest one, once per device."""
    return device.type == "cuda" and find_spec("triton") is not None and _works(device)


@lru_cache
def _works(device: torch.device) -> bool:
    from osd.kernels.gpu.highest import highest

    values_RV = torch.tensor([[1.0, 3.0, 3.0, 2.0]], device=device)
    try:
        is_right = highest(values_RV).tolist() == [1]
    except Exception as error:  # compilers fail in many ways; torch's operations are used instead
        _log.warning("no kernels on %s, decoding is slower: %s: %s", device, type(error).__name__, error)
        return False
    if not is_right:
        _log.warning("no kernels on %s, decoding is slower: they compute something else", device)
    return is_right
