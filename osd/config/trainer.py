"""Settings of the trainer."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from osd.config.section import Section


class TrainerConfig(Section):
    """Online distillation."""

    enabled: bool = Field(True, description="False serves with the drafter as it is.")
    loss: Literal["forward_kl", "reverse_kl", "jsd", "total_variation", "lk", "hard_label"] = Field(
        "forward_kl", description="Distillation loss on the target's top-K distribution."
    )
    positions: Literal["all", "rejected"] = Field("all", description="Output positions trained on.")
    rejected_loss: Literal["none", "forward_kl", "reverse_kl", "jsd", "total_variation", "lk"] = Field(
        "none", description="As loss, after rejected tokens; not for kind 'model'; needs outcomes.rejected_top_k."
    )
    optimizer: str = Field("AdamW", description="A class name of torch.optim or torch_optimizer.")
    optimizer_options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the optimizer.")
    learning_rate: float = Field(3e-4, gt=0, description="Learning rate after warm-up.")
    warmup_steps: int = Field(20, ge=0, description="Steps over which the learning rate rises.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    batch_tokens: int = Field(1024, ge=1, description="Sequence positions per training step.")
    passes: float = Field(16.0, gt=0, description="How often an output token is trained on, on average, at most.")
    unroll_steps: int = Field(
        2, ge=1, le=8, description="For 'feature' and 'eagle3': steps fed with the drafter's own features."
    )
    replay_bytes: int = Field(128 << 20, ge=1 << 16, description="Memory for replayed outcomes.")
    min_records: int = Field(8, ge=1, description="Outcomes needed before the first training step.")
    held_out_share: float = Field(0.25, gt=0, lt=1, description="Share of outcomes for the gate, never trained on.")
    held_out_records: int = Field(64, ge=1, description="Newest held-out outcomes that the gate uses.")
    gate_every_steps: int = Field(10, ge=1, description="Fewest training steps between two attempts to publish.")
    gate_margin: float = Field(
        0.0,
        ge=0,
        description="Publish if the 95% interval of the gain in held-out acceptance length lies above this.",
    )
    first_version_share: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="Share of a shipped or imported drafter's weights in what is published, against forgetting.",
    )
    max_utilisation: float = Field(
        0.5, ge=0, le=1, description="Train only while the engine is busy less than this share; 1 trains always."
    )
    max_serving_cost: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Share of its time that a busier engine leaves to training while the gate shows gain; 0: none.",
    )
    threads: int = Field(1, ge=1, description="CPU threads of the trainer.")
    nice: int = Field(19, ge=0, le=19, description="OS priority of the trainer; 19 is the lowest.")
    device: str = Field("auto", description="Device to train on; auto: a free GPU, else the CPU.")
    seed: int = Field(0, description="Seed of replay sampling.")
