"""Settings of the stream of verification outcomes."""

from __future__ import annotations

from pydantic import Field

from osd.config.section import Section


class OutcomesConfig(Section):
    """The stream of verification outcomes that the trainer learns from."""

    enabled: bool = Field(True, description="False records no outcomes, so nothing is learnt.")
    redis_url: str = Field("", description="redis:// or unix:// URL; empty starts a private embedded redis-server.")
    stream: str = Field("osd:outcomes", description="Name of the Redis stream.")
    max_entries: int = Field(20_000, ge=1, description="Most outcomes kept in the stream.")
    max_bytes: int = Field(96 << 20, ge=1 << 16, description="Most bytes kept in the stream.")
    max_bytes_per_s: int = Field(
        64 << 20,
        ge=1 << 16,
        description="Most bytes that all engines write to the stream in a second; above it they record a share of the "
        "queries.",
    )
    queue_entries: int = Field(64, ge=1, description="Most outcomes waiting to be written; further ones are dropped.")
    spill_bytes: int = Field(
        64 << 20, ge=0, description="Largest size of the file that holds outcomes while Redis cannot be reached."
    )
    top_k: int = Field(32, ge=1, le=256, description="Target log-probabilities kept per output position.")
    rejected_top_k: int = Field(0, ge=0, le=256, description="As top_k, after each rejected token; 0: none are kept.")
    prompt_hidden_tokens: int = Field(256, ge=0, description="Prompt positions whose hidden states are kept.")
