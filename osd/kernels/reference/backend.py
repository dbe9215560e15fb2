"""The reference back end: everything by torch's operations, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from osd.kernels.backend import Decoder, FeatureRound, RowMemory, Sizes, int4_refusal
from osd.kernels.reference.decoder import TorchDecoder
from osd.kernels.reference.drafting.eagle3_net import Eagle3Net
from osd.kernels.reference.drafting.eagle3_round import Eagle3Round
from osd.kernels.reference.drafting.feature_net import FeatureNet
from osd.kernels.reference.drafting.feature_round import TorchFeatureRound, cache_entries
from osd.kernels.reference.llama import is_llama
from osd.kernels.reference.logits import TorchLogits, most_likely
from osd.kernels.reference.rows import TorchRows
from osd.records.shared_rows import SharedRows
from osd.verify.logits import Logits


class TorchBackend:
    """See `osd.kernels.backend.Backend`."""

    def rows(self, num_slots: int, length: int, like: Tensor) -> RowMemory:
        """See `Backend`."""
        return TorchRows(num_slots, length, like)

    def logits(self, logits_BQV: Tensor) -> Logits:
        """See `Backend`."""
        return TorchLogits(logits_BQV)

    def most_likely(self, logits: Tensor) -> Tensor:
        """See `Backend`."""
        return most_likely(logits)

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
        if isinstance(net, Eagle3Net):
            return Eagle3Round(
                net,
                shared,
                num_slots=num_slots,
                max_context_tokens=max_context_tokens,
                max_length=max_length,
                find=self.most_likely,
            )
        length = cache_entries(net.config, max_context_tokens, max_length)
        return TorchFeatureRound(net, shared, num_slots=num_slots, length=length, find=self.most_likely)
