"""An `eagle3` drafter with random weights for the tiny target."""

from __future__ import annotations

from osd.drafters.eagle3.layout import TargetShape, parse_config
from osd.drafters.eagle3.reading import head_of
from osd.drafters.feature import FeatureDrafter
from osd.models.target import Target
from tests.kit.eagle3_heads import head_config, head_tensors

EAGLE3_LAYERS = (0, 1, 1)
"""What the target must be made with (`hidden_layers`)."""


def eagle3_drafter(target: Target, *, version: int = 1) -> FeatureDrafter:
    """For the tiny Llama: a vocabulary of sixteen tokens, and a head that reads `EAGLE3_LAYERS`."""
    raw = head_config(eagle_aux_hidden_state_layer_ids=list(EAGLE3_LAYERS))
    shape = TargetShape(target.lm.hidden_size, target.lm.vocab_tokens, 2)
    shared = target.shared_rows()
    head = head_of(parse_config(raw, shape), head_tensors(raw), shared.embedding_VH.float())
    drafter = FeatureDrafter(
        head.config,
        shared,
        target.backend,
        num_slots=target.tokens_SL.shape[0],
        max_context_tokens=target.max_context_tokens,
        max_length=4,
    )
    drafter.prepare(head.state, version)()
    return drafter
