"""Any transformers causal LM, run over a slot cache: rows of different lengths, explicit positions and masks.

The back end's decoder runs the models that it supports, transformers' own forward the others. Both are checked at start
against the plain model; a decoder that differs is not used.

Shapes: B rows, Q new positions (padded to the longest row), H hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from inspect import signature
from typing import Any

from torch import Tensor

from osd.kernels.backend import (
    Backend,
    Cache,
    Decoder,
    Passes,
    PassOutput,
    Proposed,
    RowMemory,
    Sizes,
    Wanted,
    Way,
    adopt_rows,
)
from osd.machine.arrays import Numbers
from osd.models.context import longest_context
from osd.models.plain_passes import PlainPasses
from osd.models.self_check import Row, SelfCheck, UnfitModelError
from osd.records.errors import OsdError, reason
from osd.records.proposal import DraftBatch

_log = logging.getLogger(__name__)
_KINDS = {"full_attention", "sliding_attention"}
"""Types of layers that the slot cache supports."""


class SlotModel:
    """A model with its slot cache.

    Args:
        model: a loaded causal LM in eval mode, with SDPA attention.
        backend: creates what computes.
        num_slots: rows of the cache.
        max_context_tokens: most positions of a row.
        max_new_tokens: most new positions of a pass; padding may be written that far beyond a row's end.
        frozen: whether the weights never change, so that they may be stored in a faster layout only.
        max_round_tokens: most new positions per row in a decoding round.
        is_int4: quantise the layers' weights to four bits, which makes it another model.
        kept: where the hidden states of all passes are stored; None: nowhere.
        hidden_layers: see `osd.kernels.backend.Backend.decoder`.

    Raises:
        OsdError: the model's outputs over this cache differ from its plain outputs, so it cannot be served correctly;
            or its weights cannot be quantised to four bits.
    """

    def __init__(
        self,
        model: Any,
        backend: Backend,
        *,
        num_slots: int,
        max_context_tokens: int,
        max_new_tokens: int,
        frozen: bool = False,
        max_round_tokens: int = 0,
        is_int4: bool = False,
        kept: RowMemory | None = None,
        hidden_layers: Sequence[int] = (),
    ) -> None:
        self.model = model
        head_VH = head_of(model)
        self.device, self.dtype = head_VH.device, head_VH.dtype
        self.vocab_tokens: int = head_VH.shape[0]
        self.hidden_size: int = head_VH.shape[1]
        self.max_context_tokens = longest_context(model.config.get_text_config(), max_context_tokens)
        max_len = self.max_context_tokens + max_new_tokens
        sizes = Sizes(num_slots, self.max_context_tokens, max_len, max_round_tokens)
        reaches = _reaches(model)
        self._plain = PlainPasses(model, reaches, backend, sizes, kept, hidden_layers)
        decoder = backend.decoder(model, sizes, kept=kept, frozen=frozen, is_int4=is_int4, hidden_layers=hidden_layers)
        self.decoder = _checked(self._plain, decoder, SelfCheck(model, reaches, sizes), is_int4=is_int4)
        """Runs the passes; None if the back end does not support the model, or gave wrong outputs."""
        self._passes: Passes = self.decoder or self._plain

    @property
    def is_fused(self) -> bool:
        """Whether the back end's own decoder runs the passes."""
        return self.decoder is not None

    @property
    def computes(self) -> str:
        """Device, dtype and implementation in one line, for the operator."""
        return self._passes.computes

    def adopt(self, other: SlotModel, num_tokens: Sequence[int]) -> None:
        """Copy the rows of another `SlotModel` with the same weights.

        Args:
            other: with the same shapes, by another back end.
            num_tokens: positions to copy, by row.
        """
        adopt_rows(self.cache, other.cache, num_tokens)

    def close(self) -> None:
        """Remove the hooks from the model; no passes are possible afterwards."""
        self._plain.close()

    def forward(self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: Wanted = "all") -> PassOutput:
        """Run one pass; see `osd.kernels.backend.Way.read`."""
        return self._passes.read(first_row, ids_BQ, starts, logits=logits)

    def draft(self, batch: DraftBatch, starts: Sequence[int], counts: Sequence[int], num_tokens: int) -> Proposed:
        """Run a draft model's round; see `osd.kernels.backend.Passes.draft`."""
        return self._passes.draft(batch, starts, counts, num_tokens)

    def weights_changed(self) -> None:
        """Call this after copying new values into the model's weights, if they are not frozen."""
        if self.decoder is not None:
            self.decoder.pack()

    @property
    def cache(self) -> Cache:
        """The slot cache that passes use."""
        return self._passes.cache

    def swap_rows(self, row: int, other: int, num_tokens: int) -> None:
        """Exchange two rows' first `num_tokens` positions."""
        self.cache.swap(row, other, num_tokens)

    def copy_row(self, source: int, destination: int, num_tokens: int) -> None:
        """Copy a row's first `num_tokens` positions to another row."""
        self.cache.copy(source, destination, num_tokens)

    def clear_row(self, row: int, start: int, held: int | None = None) -> None:
        """Zero a row's cache from position `start` on; see `Cache.clear`."""
        self.cache.clear(row, start, held)

    def clear_non_finite(self, held: int | None = None) -> None:
        """Zero NaN and infinite values in the cache; see `Cache.clear_non_finite`."""
        self.cache.clear_non_finite(held)


def head_of(model: Any) -> Tensor:
    """The weights of a model's output embedding, `[V, H]`.

    Raises:
        OsdError: it has none.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise _refusal(model, "it has no output embedding")
    weight: Tensor = head.weight
    return weight


def _reaches(model: Any) -> dict[str, int | None]:
    """How many positions the attention of each type of layer spans, the query's own included; None: all.

    Raises:
        OsdError: it has layers of a type that the slot cache does not support.
    """
    config = model.config.get_text_config()
    sliding_window: int | None = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    kinds = kinds or {"full_attention" if sliding_window is None else "sliding_attention"}
    if foreign := sorted(kinds - _KINDS):
        raise _refusal(model, f"it has {foreign[0]} layers")
    return {kind: sliding_window if kind == "sliding_attention" else None for kind in sorted(kinds)}


def _checked(plain: PlainPasses, decoder: Decoder | None, check: SelfCheck, *, is_int4: bool) -> Decoder | None:
    """The decoder, if its outputs equal the plain model's, with those of its implementations for which that holds.

    Raises:
        OsdError: the plain passes, which would replace it, fail as well; or nothing can replace it.
    """
    model, name = check.model, type(check.model).__name__
    try:
        cases = check.cases(lambda: plain.latest_hidden_BQH)
    except Exception as error:  # unknown architectures may raise anything; the reason is passed on
        raise _refusal(model, _reason(error)) from error
    if decoder is not None:
        decoder.pack()
        first, *others = decoder.ways
        if not (problem := _problem(check, first, cases)):
            for way in others:
                long_cases = check.long_cases(lambda: plain.latest_hidden_BQH)
                if problem := _problem(check, way, long_cases):
                    _log.warning("%s are not used for %s: %s", way.name, name, problem)
                    decoder.drop(way)
            return decoder
        if is_int4:
            raise _refusal(model, f"with target.dtype int4, {problem}")
        _log.warning("%s is not used for %s: %s", first.name, name, problem)
        decoder.unpack()
    if problem := _problem(check, plain, cases, or_else="it takes no mask by row and position: "):
        if "position_ids" not in signature(model.forward).parameters:
            problem += " (it takes no position_ids: it counts positions itself, for all rows alike)"
        raise _refusal(model, problem)
    return None


def _problem(check: SelfCheck, way: Way, cases: Sequence[Sequence[Row]], *, or_else: str = "") -> str:
    """What is wrong with an implementation of passes; empty if nothing is. An exception's text follows `or_else`."""
    try:
        return check.problem_with(way, cases)
    except Exception as error:  # unknown architectures may raise anything
        return or_else + _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, UnfitModelError):
        return str(error)
    return f"{type(error).__name__}: {reason(error)}"


def _refusal(model: Any, problem: str) -> OsdError:
    kind = type(model).__name__
    return OsdError(f"{kind} cannot be served: {problem}. Use a causal LM with standard attention (Llama, Qwen, …).")
