"""Settings of the drafter, and of how far ahead it guesses."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from osd.config.section import Section
from osd.records.rules import AcceptRule


class DrafterConfig(Section):
    """The small model that guesses."""

    kind: Literal["feature", "model", "eagle3"] = Field(
        "feature",
        description="'feature' (one layer over the target's hidden state), 'eagle3' (an EAGLE-3 head, over several "
        "layers of the target) or 'model' (a small causal LM).",
    )
    model: str = Field("", description="For kind 'model': a hub id or folder; empty derives one from the target.")
    pretrained: bool = Field(
        True, description="Start from the drafter shipped for the target, if there is one; False starts untrained."
    )
    layers: int = Field(2, ge=1, description="For a derived 'model' drafter: layers taken from the target.")
    vocab_tokens: int = Field(8192, ge=2, description="For 'feature' and new 'eagle3': size of the reduced vocabulary.")
    window_tokens: int = Field(256, ge=2, description="For 'feature': how many positions back its attention reaches.")
    seed: int = Field(0, description="Seed of a new drafter's weights.")
    max_domains: int = Field(0, ge=0, le=64, description="Most domains with drafters of their own; 0: one for all.")
    route: bool = Field(
        True,
        description="With max_domains: guess the domain of a query that names none by its prompt; learnt from those "
        "that name one.",
    )
    suffix: bool = Field(
        True,
        description="Also propose what followed the same tokens in the query's own text or in recent answers of its "
        "domain, where that promises more than the drafter.",
    )
    suffix_bytes: int = Field(
        4 << 20, ge=0, description="Memory for these recent answers, about 9 bytes a token; 0 uses own text only."
    )


class SpeculationConfig(Section):
    """How far ahead the drafter guesses."""

    enabled: bool = Field(True, description="False decodes plainly, as with speculation length 0.")
    max_length: int = Field(4, ge=1, le=16, description="Most tokens proposed per round.")
    fixed_length: int | None = Field(None, ge=0, le=16, description="Always propose this many; default: by goodput.")
    accept_rule: AcceptRule = Field(
        "token",
        description="How sampled proposals are verified: 'token' by token, or as one 'block', which accepts no fewer.",
    )
    probe_interval_rounds: int = Field(
        24,
        ge=1,
        description="While speculation does not pay, propose one token every this many rounds, at most 1% of the time.",
    )
