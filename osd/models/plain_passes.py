"""Passes of any causal LM by transformers' own forward, over the slot cache, with explicit positions and masks.

Shapes: B rows, Q new positions (padded to the longest row), L cached positions seen, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from osd.kernels.backend import Backend, PassOutput, Proposed, RowMemory, Sizes, Wanted
from osd.kernels.processor import describe
from osd.kernels.reference.attention import look_back
from osd.kernels.reference.decoder import draft_by_passes
from osd.kernels.reference.window import PassWindow
from osd.machine.arrays import Numbers
from osd.machine.transfer import to_device
from osd.models.slot_cache import SlotCache
from osd.records.errors import OsdError
from osd.records.proposal import DraftBatch


class PlainPasses:
    """See `osd.kernels.backend.Passes`.

    Args:
        model: a loaded causal LM in eval mode.
        reaches: how many positions the attention of each type of layer spans, the query's own included; None: all.
        backend: wraps the logits.
        sizes: of the cache.
        kept: where hidden states are stored.
        hidden_layers: see `osd.kernels.backend.Backend.decoder`.
    """

    name = "transformers' own forward"

    def __init__(
        self,
        model: Any,
        reaches: dict[str, int | None],
        backend: Backend,
        sizes: Sizes,
        kept: RowMemory | None,
        hidden_layers: Sequence[int] = (),
    ) -> None:
        self._hidden_layers = tuple(hidden_layers)
        self._asked = {"output_hidden_states": True} if hidden_layers else {}
        self._model, self._reaches, self._backend, self._kept = model, reaches, backend, kept
        weight = model.get_output_embeddings().weight
        self._device, self._dtype, self._hidden_size = weight.device, weight.dtype, weight.shape[1]
        self._max_positions = sizes.max_positions
        self._window = PassWindow(self._device)
        num_layers = model.config.get_text_config().num_hidden_layers
        self.cache = SlotCache(self._window, num_layers, sizes.num_slots, sizes.max_len)
        # The parameter's name since transformers 5.24, or the name before.
        name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
        self._cache_argument = {name: self.cache}
        self.latest_hidden_BQH = torch.empty(0)
        """The last hidden states of the model's latest pass, over this cache or not."""
        # Some models call their base's decoder directly, not the base; in others, get_decoder() returns the head.
        modules = {model.base_model, model.get_decoder()} - {None, model}
        self._hooks = [module.register_forward_hook(self._note_hidden) for module in modules]

    def close(self) -> None:
        """Remove the hooks from the model; no passes are possible afterwards."""
        for hook in self._hooks:
            hook.remove()

    @property
    def computes(self) -> str:
        """See `Passes`."""
        return describe(self._device, self._dtype)

    @torch.no_grad()
    def read(self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: Wanted) -> PassOutput:
        """See `Way`; without requested logits, the last position's are computed and dropped."""
        self._window.set(first_row, starts, ids_BQ.shape[1])
        output = self._model(
            input_ids=to_device(ids_BQ, self._device),
            attention_mask=self._mask(),
            # Padding may lie beyond the model's positions.
            position_ids=self._window.positions_BQ.clamp(max=self._max_positions - 1),
            use_cache=True,
            logits_to_keep=0 if logits == "all" else 1,
            **self._asked,
            **self._cache_argument,
        )
        hidden_BQH = self.latest_hidden_BQH
        if self._kept is not None:
            self._kept.keep(first_row, starts, self._to_keep(output))
        return PassOutput(None if logits == "none" else self._backend.logits(output.logits), lambda: hidden_BQH)

    def draft(self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], num_tokens: int) -> Proposed:
        """See `Passes`."""
        return draft_by_passes(self, batch, starts, counts, num_tokens, self._backend.most_likely)

    def _to_keep(self, output: Any) -> Tensor:
        """The hidden states `[B, Q, J]` that are stored of the model's latest pass."""
        if not self._hidden_layers:
            return self.latest_hidden_BQH
        if output.hidden_states is None:
            kind = type(self._model).__name__
            raise OsdError(f"{kind} does not give the hidden states between its layers, which an eagle3 drafter reads")
        return torch.cat([output.hidden_states[layer] for layer in self._hidden_layers], dim=-1)

    def _note_hidden(self, _module: object, _args: object, output: Any) -> None:
        hidden = output[0]
        if isinstance(hidden, Tensor) and hidden.ndim == 3 and hidden.shape[2] == self._hidden_size:
            self.latest_hidden_BQH = hidden

    def _mask(self) -> Any:
        """The mask in transformers' form: `[B, 1, Q, L]`, or a dictionary of that by layer type."""
        masks = {kind: self._looks(reach)[:, None] for kind, reach in self._reaches.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _looks(self, reach: int | None) -> Tensor:
        """The causal mask `[B, Q, L]`: boolean, or additive where the model adds it to its scores."""
        mask_BQL = look_back(self._window, reach)
        if self._model.config._attn_implementation != "eager":
            return mask_BQL
        return torch.zeros_like(mask_BQL, dtype=self._dtype).masked_fill_(~mask_BQL, torch.finfo(self._dtype).min)
