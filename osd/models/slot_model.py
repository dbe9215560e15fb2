"""Any causal LM of transformers, run over the slot cache: ragged rows, explicit positions, explicit masks.

Models of a supported family take the fused pass (`osd.models.fused`), the others transformers' own forward. Both are
checked at start against the plain model; a fused pass that differs is not used.

Shapes: B rows, Q new positions (padded to the longest row), L cached positions seen, H hidden size, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from osd.kernels.cpu.tiled_cache import TiledCache
from osd.kernels.gpu.graphs import Capture, GraphPool, Work, bucket, capture_for
from osd.kernels.most_likely import most_likely
from osd.kernels.reference.attention import look_back
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.slot_cache import PassWindow, SlotCache
from osd.machine.arrays import Numbers, tensor
from osd.machine.transfer import sent, staged
from osd.models.context import longest_context
from osd.models.fused import FusedLM, is_supported
from osd.models.pass_output import Logits, PassOutput
from osd.models.self_check import Row, UnfitModelError, is_affordable, plain_rows, problem_with
from osd.records.errors import OsdError
from osd.records.reason import reason

_log = logging.getLogger(__name__)
_SMALLEST_SEEN = 256
_CHECK_STARTS = (11, 7, 2)
_CHECK_CHUNK = 4
_BEYOND = 8
"""Positions past a window's size at which a row of the check ends, more than it reads last."""
_LONG_CHECK = 300
"""Positions that kernels look back over in their check: several of their steps."""


class SlotModel:
    """A model with its slot cache.

    Args:
        model: a loaded causal LM in eval mode, with SDPA attention.
        num_slots: rows of the cache.
        max_context_tokens: most positions of a row.
        max_new_tokens: most new positions of one pass (padding may be written that far beyond a row's end).
        frozen: the weights never change, so they may be kept in a faster layout instead of the model's own.
        max_round_tokens: new positions of a row up to which a pass is captured, where the device gains from it.
        capture: how; by default what fits the device.
        is_int4: round the layers' weights to four bits: the model is another one then.

    Raises:
        OsdError: the model's output over this cache differs from its plain output; it cannot be served correctly. Or it
            cannot be rounded to four bits.
    """

    def __init__(
        self,
        model: Any,
        *,
        num_slots: int,
        max_context_tokens: int,
        max_new_tokens: int,
        frozen: bool = False,
        max_round_tokens: int = 0,
        capture: Capture | None = None,
        is_int4: bool = False,
    ) -> None:
        self.model = model
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = next(model.parameters()).dtype
        config = model.config.get_text_config()
        head = model.get_output_embeddings()
        if head is None:
            raise _refusal(model, "it has no output embedding")
        self.vocab_tokens: int = head.weight.shape[0]
        self.hidden_size: int = head.weight.shape[1]
        self.max_context_tokens = longest_context(config, max_context_tokens)
        max_len = self.max_context_tokens + max_new_tokens
        self.window = PassWindow(self.device)
        self._cache = SlotCache(self.window, config.num_hidden_layers, num_slots, max_len)
        sliding_window: int | None = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ())
        kinds = kinds or {"full_attention" if sliding_window is None else "sliding_attention"}
        if foreign := sorted(kinds - {"full_attention", "sliding_attention"}):
            raise _refusal(model, f"it has {foreign[0]} layers")
        self._reaches = {kind: sliding_window if kind == "sliding_attention" else None for kind in sorted(kinds)}
        self._hidden_BQH = torch.empty(0)
        # Some models call their base's decoder past the base; of others, what is called decoder is the head.
        modules = {model.base_model, model.get_decoder()} - {None, model}
        self._hooks = [module.register_forward_hook(self._keep_hidden) for module in modules]
        self._fused: FusedLM | None = None
        capture = capture or capture_for(self.device)
        if is_supported(model):
            self._fused = FusedLM(
                model,
                num_slots=num_slots,
                max_positions=self.max_context_tokens,
                max_len=max_len,
                compiled=capture is None,
            )
        if is_int4:
            if self._fused is None or not self._fused.can_round_to_int4:
                kind = type(model).__name__
                needs = "a Llama-shaped model in bfloat16 on a CPU, of sizes that are multiples of 32, and numba"
                raise OsdError(f"target.dtype int4 needs {needs}; {kind} cannot have it here: take auto")
            self._fused.round_to_int4()
        # By its name since transformers 5.24, or by the one before.
        name = "cache" if "cache" in signature(model.forward).parameters else "past_key_values"
        self._cache_argument = {name: self._cache}
        self._num_slots, self._max_len, self._max_round_tokens = num_slots, max_len, max_round_tokens
        self._graphs: GraphPool | None = None
        self._kernels_are_right = False
        self.kept_SLH: Tensor | None = None
        """Where captured passes keep their last hidden states, by slot and position, with zero for what is not finite:
        their owner's.
        """
        self._check(frozen=frozen)
        if capture is not None and self._fused is not None:  # only now: the check takes other shapes
            self._graphs = GraphPool(capture)

    @property
    def is_fused(self) -> bool:
        """Whether passes are fused."""
        return self._fused is not None

    def adopt(self, other: SlotModel, num_tokens: Sequence[int]) -> None:
        """See `FusedLM.adopt`."""
        if self._fused is not None:
            assert other._fused is not None
            self._fused.adopt(other._fused, num_tokens)
        else:  # no kernels for its passes: its rows stay where they are
            self.window, self._cache, self._cache_argument = other.window, other._cache, other._cache_argument

    @property
    def fits_cpu_kernels(self) -> bool:
        """Whether a CPU's compiled kernels can run its passes, when there are any."""
        return self._fused is not None and self._fused.fits_cpu_kernels

    def close(self) -> None:
        """Leave the model to others; there are no passes after this."""
        for hook in self._hooks:
            hook.remove()

    def forward(
        self, first_row: int, ids_BQ: Numbers, starts: Sequence[int], *, logits: str = "all", by_kernels: bool = False
    ) -> PassOutput:
        """Read `ids_BQ[b]` into row `first_row + b` from position `starts[b]` on.

        Args:
            first_row: the pass covers rows `first_row .. first_row + B - 1`.
            ids_BQ: new tokens, on the device or the host; rows shorter than Q are padded with any id, whose output is
                meaningless.
            starts: positions already cached, by row.
            logits: "all" positions, the "last" one only, or "none" (then only the last is computed, and dropped).
            by_kernels: see `FusedLM`; a captured pass chooses for itself.
        """
        is_round = logits == "all" and first_row == 0 and ids_BQ.shape[1] <= self._max_round_tokens
        if self._graphs is not None and is_round:
            return self._replay(self._graphs, ids_BQ, starts)
        self.window.set(first_row, starts, ids_BQ.shape[1])
        if self._fused is not None:
            return self._fused(ids_BQ, self.window, logits=logits, by_kernels=by_kernels)
        return self._read_plainly(sent(ids_BQ, self.device), logits)

    @torch.no_grad()
    def _read_plainly(self, ids_BQ: Tensor, logits: str) -> PassOutput:
        """By transformers' own forward."""
        output = self.model(
            input_ids=ids_BQ,
            attention_mask=self._plain_mask(),
            # Padding may stand beyond the positions that the model knows.
            position_ids=self.window.positions_BQ.clamp(max=self.max_context_tokens - 1),
            use_cache=True,
            logits_to_keep=0 if logits == "all" else 1,
            **self._cache_argument,
        )
        return PassOutput(None if logits == "none" else Logits(output.logits), self._hidden_BQH)

    @torch.no_grad()
    def _replay(self, graphs: GraphPool, numbers_BQ: Numbers, starts: Sequence[int]) -> PassOutput:
        """A captured pass."""
        num_rows, num_new = numbers_BQ.shape
        ids_BQ = numbers_BQ if isinstance(numbers_BQ, Tensor) else staged(numbers_BQ, self.device)
        padded, seen = self.bucketed(starts, num_new)
        if len(padded) > num_rows:
            ids_BQ = F.pad(ids_BQ, (0, 0, 0, len(padded) - num_rows))

        def work_that_reads(by_kernels: bool) -> Work:
            def work(ids_BQ: Tensor, starts_B: Tensor) -> tuple[Tensor, ...]:
                logits_BQV, hidden_BQH = self.read_on_device(ids_BQ, starts_B, seen, by_kernels=by_kernels)
                if self.kept_SLH is not None:
                    finite_BQH = hidden_BQH.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
                    self.kept_SLH[self.window.rows_B1, self.window.positions_BQ] = finite_BQH
                return logits_BQV, hidden_BQH, most_likely(logits_BQV)

            return work

        logits_BQV, hidden_BQH, best_BQ = graphs.run(
            (len(padded), num_new, seen),
            work_that_reads(by_kernels=False),
            ids_BQ,
            staged(padded, self.device),
            instead=work_that_reads(by_kernels=True) if self.can_use_kernels(num_new) else None,
        )
        self.window.set(0, starts, num_new)
        found = Logits(logits_BQV[:num_rows], best_BQ[:num_rows])
        return PassOutput(found, hidden_BQH[:num_rows], is_kept=self.kept_SLH is not None)

    @property
    def graphs(self) -> GraphPool | None:
        """Captured passes, where the device gains from them; a drafter keeps its whole rounds there, too."""
        return self._graphs

    def bucketed(self, starts: Sequence[int], num_new: int) -> tuple[list[int], int]:
        """Every row's start, and how many positions are seen, for captured work over `num_new` positions.

        Both are rounded up, so that few shapes do for all. Rows beyond the real ones write where no row of a query
        reaches: past the longest context.
        """
        padding = bucket(len(starts), 1, self._num_slots) - len(starts)
        seen = bucket(max(starts) + num_new, _SMALLEST_SEEN, self._max_len)
        return [*starts, *[self._max_len - num_new] * padding], seen

    @property
    def is_compiled(self) -> bool:
        """Whether passes are by a CPU's compiled kernels."""
        return self._fused is not None and self._fused.is_compiled

    @property
    def is_int4(self) -> bool:
        """Whether the layers' weights are four-bit codes."""
        return self._fused is not None and self._fused.is_int4

    def can_use_kernels(self, num_new: int) -> bool:
        """Whether a captured pass over so many new positions a row may choose to."""
        return self._kernels_are_right and self._fused is not None and self._fused.can_use_kernels(num_new)

    def read_on_device(
        self, ids_BQ: Tensor, starts_B: Tensor, num_seen: int, *, by_kernels: bool
    ) -> tuple[Tensor, Tensor]:
        """A pass from row 0 on as a function of tensors alone, to be captured: all logits, and last hidden states."""
        assert self._fused is not None
        self.window.set_on_device(starts_B, ids_BQ.shape[1], num_seen)
        output = self._fused(ids_BQ, self.window, logits="all", by_kernels=by_kernels)
        return output.logits_BQV, tensor(output.hidden_BQH)

    def weights_changed(self) -> None:
        """To be called after the model's weights were copied over, if they are not frozen."""
        if self._fused is not None:
            self._fused.pack(keep=True)

    def swap_rows(self, row: int, other: int, num_tokens: int) -> None:
        """Let two rows' first `num_tokens` positions change places."""
        self._used_cache.swap(row, other, num_tokens)

    def copy_row(self, source: int, destination: int, num_tokens: int) -> None:
        """Write a row's first `num_tokens` positions over another row's."""
        self._used_cache.copy(source, destination, num_tokens)

    def clear_row(self, row: int, start: int, held: int | None = None) -> None:
        """Zero what the cache holds of a row from position `start` on; see `SlotCache.clear`."""
        self._used_cache.clear(row, start, held)

    def clear_non_finite(self) -> None:
        """Zero what overflowing weights left in the cache."""
        self._used_cache.clear_non_finite()

    @property
    def _used_cache(self) -> SlotCache | TiledCache | FlatCache:
        return self._cache if self._fused is None else self._fused.cache

    def _keep_hidden(self, _module: object, _args: object, output: Any) -> None:
        hidden = output[0]
        if isinstance(hidden, Tensor) and hidden.ndim == 3 and hidden.shape[2] == self.hidden_size:
            self._hidden_BQH = hidden

    def _plain_mask(self) -> Any:
        """As transformers' models take it: `[B, 1, Q, L]`, or a dictionary of that by layer type."""
        masks = {kind: self._looks(reach)[:, None] for kind, reach in self._reaches.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _looks(self, reach: int | None) -> Tensor:
        """Where queries may look, `[B, Q, L]`: true, or zero where the model adds the mask to its scores."""
        mask_BQL = look_back(self.window, reach)
        if self.model.config._attn_implementation != "eager":
            return mask_BQL
        return torch.zeros_like(mask_BQL, dtype=self.dtype).masked_fill_(~mask_BQL, torch.finfo(self.dtype).min)

    def _check(self, *, frozen: bool) -> None:
        """Choose the pass that agrees with the plain model; refuse a model that this cache cannot run."""
        try:
            cases = [self._plain_rows(starts) for starts in self._check_starts()]
        except Exception as error:  # a foreign architecture may fail in any way; the reason is passed on
            raise _refusal(self.model, _reason(error)) from error
        if self._fused is not None:
            self._fused.pack(keep=not frozen)
            if not (problem := self._problem(cases)):
                self._check_kernels()
                return
            if self._fused.is_int4:
                raise _refusal(self.model, f"with target.dtype int4, {problem}")
            _log.warning("the fused pass is not used for %s: %s", type(self.model).__name__, problem)
            if frozen:
                self._fused.unpack()
            self._fused = None
        if problem := self._problem(cases):
            if "position_ids" not in signature(self.model.forward).parameters:
                problem += " (it takes no position_ids: it counts positions itself, for all rows alike)"
            raise _refusal(self.model, problem)

    def _check_starts(self) -> list[tuple[int, ...]]:
        """Where each check's rows have their last positions: near the beginning, and beyond a window that slides."""
        found = [_CHECK_STARTS[: self._num_slots]]
        for reach in {reach for reach in self._reaches.values() if reach}:
            beyond = reach + _BEYOND
            if beyond <= self.max_context_tokens and is_affordable(self.model, beyond):
                found.append((beyond, *_CHECK_STARTS[1:])[: self._num_slots])
            else:
                _log.info("not checked beyond its window of %d tokens: it would take long, or is not served", reach)
        return found

    def _plain_rows(self, starts: Sequence[int]) -> list[Row]:
        return plain_rows(self.model, starts, lambda: self._hidden_BQH)

    def _check_kernels(self) -> None:
        """Whether a GPU's kernels give the model's logits, for short rows and for a long one."""
        starts = _CHECK_STARTS[: self._num_slots]
        if self._fused is None or not self._fused.can_use_kernels(max(starts)):
            return
        long = min(_LONG_CHECK, self.max_context_tokens - max(starts))
        for some in (starts, (max(long, starts[0]), *starts[1:])):
            if problem := self._problem([self._plain_rows(some)], by_kernels=True):
                _log.warning("the GPU's kernels are not used for %s: %s", type(self.model).__name__, problem)
                return
        self._kernels_are_right = True

    def _problem(self, cases: Sequence[Sequence[Row]], *, by_kernels: bool = False) -> str:
        """What is wrong with the passes, or nothing."""
        for rows in cases:
            fits = [by_kernels and self._fused is not None and self._fused.can_use_kernels(row.start) for row in rows]
            try:
                problem = problem_with(
                    self.forward, rows, self.dtype, chunk_tokens=_CHECK_CHUNK, by_kernels=[*fits, by_kernels]
                )
            except Exception as error:  # as above
                return ("" if self._fused else "it takes no mask by row and position: ") + _reason(error)
            if problem:
                return problem
        return ""


def _reason(error: Exception) -> str:
    if isinstance(error, UnfitModelError):
        return str(error)
    return f"{type(error).__name__}: {reason(error)}"


def _refusal(model: Any, problem: str) -> OsdError:
    kind = type(model).__name__
    return OsdError(f"{kind} cannot be served: {problem}. Use a causal LM with standard attention (Llama, Qwen, …).")
