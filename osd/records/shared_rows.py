"""What a drafter shares with the target: the embedding, and the head."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SharedRows(NamedTuple):
    """The target's own token embedding and output head, read-only."""

    embedding_VH: Tensor
    head_VH: Tensor
    head_bias_V: Tensor | None
