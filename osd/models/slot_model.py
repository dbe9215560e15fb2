"""Any causal LM of transformers, run over the slot cache: ragged rows, explicit positions, boolean masks.

Shapes: B rows, Q new positions (padded to the longest row), L cached positions seen, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from osd.models.slot_cache import SlotCache
from osd.types import OsdError

_CHECK_STARTS = (7, 5)
_CHECK_NEW = 5
_CHECK_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.35, torch.float16: 0.06}


class PassOutput(NamedTuple):
    """One pass: logits `[B, Q or 1, V]` (None when not asked for) and last hidden states `[B, Q, H]`."""

    logits_BQV: Tensor | None
    hidden_BQH: Tensor


class SlotModel:
    """A model with its slot cache.

    Args:
        model: a loaded causal LM in eval mode, with SDPA attention.
        num_slots: rows of the cache.
        max_context_tokens: most positions of a row.
        max_new_tokens: most new positions of one pass (padding may be written that far beyond a row's end).

    Raises:
        OsdError: the model's output over this cache differs from its plain output; it cannot be served correctly.
    """

    def __init__(self, model: Any, *, num_slots: int, max_context_tokens: int, max_new_tokens: int) -> None:
        self.model = model
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = next(model.parameters()).dtype
        config = model.config.get_text_config()
        self.hidden_size: int = config.hidden_size
        self.vocab_tokens: int = model.get_output_embeddings().weight.shape[0]
        limit = getattr(config, "max_position_embeddings", None) or max_context_tokens
        self.max_context_tokens = min(max_context_tokens, limit)
        self.cache = SlotCache(
            config.num_hidden_layers, num_slots, self.max_context_tokens + max_new_tokens, self.device
        )
        self._layer_types = set(getattr(config, "layer_types", None) or ())
        self._sliding_window: int | None = getattr(config, "sliding_window", None)
        if not self._layer_types and self._sliding_window is not None:
            self._layer_types = {"sliding_attention"}
        if foreign := sorted(self._layer_types - {"full_attention", "sliding_attention"}):
            raise _refusal(model, f"it has {foreign[0]} layers")
        self._masks_by_type = False
        self._hidden_BQH = torch.empty(0)
        model.base_model.register_forward_hook(self._keep_hidden)
        self._check(_CHECK_STARTS[:num_slots])

    @torch.no_grad()
    def forward(self, first_row: int, ids_BQ: Tensor, starts: Sequence[int], *, logits: str = "all") -> PassOutput:
        """Read `ids_BQ[b]` into row `first_row + b` from position `starts[b]` on.

        Args:
            first_row: the pass covers rows `first_row .. first_row + B - 1`.
            ids_BQ: new tokens; rows shorter than Q are padded with any id, whose output is meaningless.
            starts: positions already cached, by row.
            logits: "all" positions, the "last" one only, or "none" (then only the last is computed, and dropped).
        """
        window = self.cache.window
        window.set(first_row, starts, ids_BQ.shape[1])
        output = self.model(
            input_ids=ids_BQ,
            attention_mask=self._mask(),
            position_ids=window.positions_BQ.clamp(max=self.max_context_tokens - 1),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=0 if logits == "all" else 1,
        )
        return PassOutput(None if logits == "none" else output.logits, self._hidden_BQH)

    def move_row(self, source: int, destination: int, num_tokens: int) -> None:
        """Copy a row's first `num_tokens` positions over another row's."""
        self.cache.move(source, destination, num_tokens)

    def _keep_hidden(self, _module: object, _args: object, output: Any) -> None:
        self._hidden_BQH = output[0]

    def _mask(self) -> Any:
        """True where a query may look: at its own position and before, within the layer type's window."""
        window = self.cache.window
        queries_BQ1 = window.positions_BQ[:, :, None]
        keys_L = torch.arange(window.num_seen, device=self.device)
        full_B1QL = (keys_L <= queries_BQ1)[:, None]
        if "sliding_attention" not in self._layer_types or self._sliding_window is None:
            sliding_B1QL = full_B1QL
        else:
            sliding_B1QL = full_B1QL & (keys_L > queries_BQ1 - self._sliding_window)[:, None]
        if self._masks_by_type:
            return {"full_attention": full_B1QL, "sliding_attention": sliding_B1QL}
        return sliding_B1QL if self._layer_types == {"sliding_attention"} else full_B1QL

    def _check(self, starts: Sequence[int]) -> None:
        """Refuse a model that this cache cannot run."""
        tolerance = _CHECK_TOLERANCE.get(self.dtype, 0.35)
        problem = ""
        for self._masks_by_type in (False, True):
            try:
                gap = self._gap(starts)
                if gap <= tolerance:
                    return
                problem = f"its logits over the slot cache are off by {gap:.2g}"
            except Exception as error:  # a foreign architecture may fail in any way; the reason is passed on
                reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                problem = problem or reason
        raise _refusal(self.model, problem)

    @torch.no_grad()
    def _gap(self, starts: Sequence[int]) -> float:
        """How far the logits of rows read in two pieces are from the plain model's.

        The rows are ragged: a model that makes its own causal mask is right while all rows stand at one position.
        """
        rows_B1 = torch.arange(len(starts), device=self.device)[:, None]
        ids_BL = (torch.arange(max(starts) + _CHECK_NEW, device=self.device) + 5 * rows_B1) % self.vocab_tokens
        plain_BLV = self.model(input_ids=ids_BL, use_cache=False).logits.float()
        firsts = [self.forward(row, ids_BL[row : row + 1, :start], [0]) for row, start in enumerate(starts)]
        new_BQ = torch.stack([ids_BL[row, start : start + _CHECK_NEW] for row, start in enumerate(starts)])
        second_BQV = self.forward(0, new_BQ, starts).logits_BQV
        assert second_BQV is not None
        gap = 0.0
        for row, first in enumerate(firsts):
            assert first.logits_BQV is not None
            ours_QV = torch.cat((first.logits_BQV[0], second_BQV[row]))
            gap = max(gap, float((ours_QV - plain_BLV[row, : len(ours_QV)]).abs().max()))
        return gap / max(1.0, float(plain_BLV.abs().max()) / 10)


def _refusal(model: Any, problem: str) -> OsdError:
    kind = type(model).__name__
    return OsdError(f"{kind} cannot be served: {problem}. Use a causal LM with standard attention (Llama, Qwen, …).")
