"""How long a query may be: as configured, or as the model and memory allow.

Every row has room for the longest query: `engine.max_slots` rows of so many positions. On a CPU a row takes memory only
as far as it was ever filled, on a GPU all of it is taken at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from osd.config.settings import Config
from osd.loading.fit import memory_bytes
from osd.loading.resolve import resolve_target
from osd.models.context import Context, longest_context, rotary_boundary
from osd.models.slot_model import head_of
from osd.records.errors import OsdError

_CPU_SHARE, _GPU_SHARE = 0.5, 0.75
"""Share of the memory beside the weights that rows may take. The rest is for passes, the trainer, Redis and others."""
_LEAST_TOKENS, _STEP_TOKENS = 256, 256
"""The shortest context that memory may leave, and what a context that memory limits is a multiple of."""
_TOKEN_ID_BYTES = 8


def choose_context(
    config: Config,
    model: Any,
    hidden_layers: Sequence[int] = (),
    *,
    room_bytes: Callable[[Any], int] | None = None,
) -> Context:
    """The context of a loaded model.

    Args:
        config: the whole configuration.
        model: the causal LM.
        hidden_layers: see `osd.models.target.Target`.
        room_bytes: memory for the rows of a model; None: found out.

    Raises:
        OsdError: the configured context is longer than the model can serve, or memory holds hardly any.
    """
    asked, text_config = config.target.max_context_tokens, model.config.get_text_config()
    boundary, kind = rotary_boundary(text_config), type(model).__name__
    changes = f"{kind} changes its rotary factors (LongRoPE) at {boundary} tokens, and osd serves it up to there"
    if asked is not None and boundary is not None and asked > boundary:
        raise OsdError(f"target.max_context_tokens is {asked}: {changes}; set {boundary} or less")
    own = longest_context(text_config, asked)
    if own == asked:
        return Context(own, "target.max_context_tokens")
    reason = changes if own == boundary else "the model's own"
    if asked is not None:
        return Context(own, f"{reason}, below target.max_context_tokens ({asked})")
    of_drafter = _drafter_tokens(config)
    if of_drafter is not None and of_drafter < own:
        own, reason = of_drafter, f"that of the drafter {config.drafter.model!r} (the model's own is {own})"
    num_slots, each_bytes = config.engine.max_slots, position_bytes(model, hidden_layers)
    room = (room_bytes or _room_bytes)(model)
    held = room // (num_slots * each_bytes) - config.engine.prefill_chunk_tokens
    if held >= own:
        return Context(own, reason)
    held -= held % _STEP_TOKENS
    each = f"{each_bytes / 1024:.0f} KiB a token"
    if held < _LEAST_TOKENS:
        raise OsdError(
            f"memory has {room / 2**30:.1f} GiB for {num_slots} rows of {each}, which is less than {_LEAST_TOKENS} "
            "tokens each; set a smaller engine.max_slots, or target.max_context_tokens"
        )
    return Context(held, f"what memory holds for {num_slots} rows of {each} (the model's own is {own})")


@torch.no_grad()
def position_bytes(model: Any, hidden_layers: Sequence[int] = ()) -> int:
    """Memory of one position of a row: keys, values, stored hidden states, and what a drafter of one layer keeps.

    Keys and values are counted in the cache of a pass over two tokens, since their sizes depend on the architecture. A
    model that cannot run such a pass has none; it is refused later, with the reason.
    """
    head_VH = head_of(model)
    try:
        ids = torch.zeros(1, 2, dtype=torch.long, device=head_VH.device)
        layers = model(input_ids=ids, use_cache=True).past_key_values.layers
        cached = int(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)) // 2
    except Exception:  # unknown architectures may raise anything
        cached = 0
    of_drafter = 2
    hidden = (max(len(hidden_layers), 1) + of_drafter) * int(head_VH[0].nbytes)
    return cached + hidden + _TOKEN_ID_BYTES


def _drafter_tokens(config: Config) -> int | None:
    """The longest context of a configured drafter model; None if there is none, or it is made of the target."""
    from transformers import AutoConfig

    drafter, trusts = config.drafter, config.target.trust_remote_code
    if drafter.kind != "model" or not drafter.model:
        return None
    folder = resolve_target(drafter.model, config.state_dir, trust_remote_code=trusts).folder
    drafter_config = AutoConfig.from_pretrained(folder, trust_remote_code=trusts)
    return longest_context(drafter_config.get_text_config(), None)


def _room_bytes(model: Any) -> int:
    """Memory for the rows of a loaded model on its device.

    On a CPU a share of all memory, rather than of what is free now, so that a restarted engine has the same context.
    """
    device = head_of(model).device
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return int(_GPU_SHARE * free_bytes)
    weights = sum(weight.nbytes for weight in model.parameters())
    return int(_CPU_SHARE * max(memory_bytes(device) - weights, 0))
