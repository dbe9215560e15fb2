"""The CPU back end's entry point: compiled loops, or the reference for whatever they do not support."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from osd.kernels.backend import Decoder, FeatureRound, RowMemory, Sizes, int4_refusal
from osd.kernels.cpu.backend.decoder import CpuDecoder, fits_kernels
from osd.kernels.cpu.backend.feature_round import CpuFeatureRound
from osd.kernels.cpu.backend.logits import CpuLogits, most_likely
from osd.kernels.cpu.backend.rows import CpuRows
from osd.kernels.cpu.kernels import Kernels
from osd.kernels.reference.backend import TorchBackend
from osd.kernels.reference.decoder import TorchDecoder
from osd.kernels.reference.drafting.eagle3_net import Eagle3Net
from osd.kernels.reference.drafting.feature_net import FeatureNet
from osd.kernels.reference.drafting.feature_round import cache_entries
from osd.kernels.reference.llama import is_llama
from osd.kernels.reference.logits import TorchLogits
from osd.records.shared_rows import SharedRows
from osd.verify.logits import Logits

_TYPES = (torch.bfloat16, torch.float32)


class CpuBackend:
    """See `osd.kernels.backend.Backend`.

    Args:
        kernels: the compiled loops.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def rows(self, num_slots: int, length: int, like: Tensor) -> RowMemory:
        """See `Backend`."""
        return CpuRows(num_slots, length, like)

    def logits(self, logits_BQV: Tensor) -> Logits:
        """See `Backend`."""
        is_bfloat16 = logits_BQV.dtype == torch.bfloat16
        return CpuLogits.of(self._kernels, logits_BQV) if is_bfloat16 else TorchLogits(logits_BQV)

    def most_likely(self, logits: Tensor) -> Tensor:
        """See `Backend`."""
        return most_likely(self._kernels, logits)

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
        if is_llama(model) and fits_kernels(model):
            assert kept is None or isinstance(kept, CpuRows)
            return CpuDecoder(
                self._kernels,
                model,
                sizes,
                kept=kept,
                frozen=frozen,
                is_int4=is_int4,
                hidden_layers=hidden_layers,
            )
        if is_int4:
            raise int4_refusal(model)
        if not is_llama(model):
            return None
        return TorchDecoder(
            model,
            sizes,
            kept=kept,
            make_logits=self.logits,
            find=self.most_likely,
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
        if isinstance(net, Eagle3Net) or shared.embedding_VH.dtype not in _TYPES:
            return TorchBackend().feature_round(
                net, shared, num_slots=num_slots, max_context_tokens=max_context_tokens, max_length=max_length
            )
        length = cache_entries(net.config, max_context_tokens, max_length)
        return CpuFeatureRound(self._kernels, net, shared, num_slots=num_slots, length=length)
