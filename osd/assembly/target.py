"""The target and its tokenizer, from a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from osd.assembly.context import choose_context
from osd.config.settings import Config
from osd.kernels.backend import Backend
from osd.loading.causal_lm import choose_device, choose_dtype, load_causal_lm
from osd.loading.fit import check_fits
from osd.loading.resolve import ResolvedTarget
from osd.loading.stored import stored_in
from osd.models.context import Context
from osd.models.target import Target
from osd.text.codec import TextCodec


def open_target(
    config: Config, resolved: ResolvedTarget, backend: Backend, hidden_layers: Sequence[int] = ()
) -> tuple[Target, TextCodec]:
    """Load the model that is served, and its tokenizer.

    Args:
        config: the whole configuration.
        resolved: the target.
        backend: creates what computes.
        hidden_layers: see `Target`.

    Raises:
        OsdError: it cannot be loaded, or served with this configuration.
    """
    device, trusts = choose_device(config.target.device), config.target.trust_remote_code
    dtype = choose_dtype(config.target.dtype, device, stored_in(resolved.folder, trust_remote_code=trusts))
    check_fits(resolved.folder, config.target.dtype, dtype, device)
    model = load_causal_lm(resolved.folder, dtype=dtype, device=device, trust_remote_code=trusts)
    context = choose_context(config, model, hidden_layers)
    codec = TextCodec.configured(resolved.folder, resolved.target_id, config.target)
    codec.context_tokens = context.num_tokens
    target_id, eos_ids = resolved.target_id, codec.end_ids
    return make_target(config, model, backend, context, target_id, eos_ids, hidden_layers), codec


def make_target(
    config: Config,
    model: Any,
    backend: Backend,
    context: Context,
    target_id: str,
    eos_ids: frozenset[int],
    hidden_layers: Sequence[int] = (),
) -> Target:
    """Make a target of a loaded model, with as many rows as the configuration sets."""
    return Target(
        model,
        backend,
        target_id=target_id,
        eos_ids=eos_ids,
        num_slots=config.engine.max_slots,
        max_context_tokens=context.num_tokens,
        max_new_tokens=max(config.engine.prefill_chunk_tokens, config.speculation.max_length + 1),
        max_round_tokens=config.speculation.max_length + 1,
        is_int4=config.target.dtype == "int4",
        hidden_layers=hidden_layers,
        context_reason=context.reason,
    )
