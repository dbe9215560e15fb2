"""The settings of Ray: how many engines, on which resources, and how they are replaced."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from osd.config.section import Section


class ClusterConfig(Section):
    """Ray: a private one on this machine, or the Ray Serve application in a cluster."""

    address: str = Field(
        "", description="Ray cluster to deploy to with Ray Serve; empty starts a local Ray, closed to others."
    )
    namespace: str = Field("osd", description="Ray namespace of a local Ray's actors.")
    object_store_bytes: int = Field(80 << 20, ge=75 << 20, description="Size of a local Ray's object store.")
    report_interval_s: float = Field(
        1.0, ge=0.1, le=10, description="Pause between two reports of an engine to the supervisor."
    )
    application: str = Field(
        "osd", pattern="^[A-Za-z0-9._-]{1,64}$", description="Name in Ray Serve; deploying it again updates it."
    )
    min_engines: int = Field(1, ge=1, description="Fewest engines.")
    max_engines: int = Field(
        1, ge=1, description="Most engines; above min_engines, their number follows the queries in progress."
    )
    target_queries: float = Field(
        0.0, ge=0, description="Queries in progress an engine that scaling aims at; 0: 3/4 of engine.max_slots."
    )
    scale_up_delay_s: float = Field(10.0, ge=0, description="How long load must be high before an engine is added.")
    scale_down_delay_s: float = Field(300.0, ge=0, description="How long it must be low before an engine leaves.")
    drain_s: float = Field(
        60.0, ge=0, description="Time for a leaving engine's queries to end; then other engines continue them."
    )
    surge: bool = Field(
        False, description="In an update, start each engine's successor before it leaves; needs room for one more."
    )
    health_interval_s: float = Field(5.0, gt=0, description="Pause between two health checks of an engine.")
    health_timeout_s: float = Field(
        30.0,
        gt=0,
        description="An engine that leaves three health checks in a row unanswered, each for so long, is replaced.",
    )
    engine_num_cpus: float = Field(
        1.0, ge=0, description="CPUs that Ray reserves an engine; whole ones are its threads if target.threads is 0."
    )
    engine_num_gpus: float = Field(
        0.0, ge=0, le=1, description="GPUs that Ray reserves an engine: 1, a fraction to share one, or 0."
    )
    engine_resources: dict[str, float] = Field(
        default_factory=dict, description="Custom Ray resources of an engine, which place it: { engine_slot = 1 }."
    )
    num_ingress: int = Field(2, ge=1, description="Replicas of the HTTP ingress.")
    ingress_num_cpus: float = Field(0.0, ge=0, description="CPUs that Ray reserves a replica of the ingress.")
    ingress_resources: dict[str, float] = Field(default_factory=dict, description="Custom Ray resources of one.")
    distiller_num_cpus: float | None = Field(
        None, ge=0, description="CPUs reserved for the distiller; default: one that no engine may need, else none."
    )
    distiller_num_gpus: float | None = Field(
        None, ge=0, le=1, description="GPUs reserved for it; default: one, or a part of one, that no engine may need."
    )
    distiller_resources: dict[str, float] = Field(default_factory=dict, description="Custom Ray resources of it.")
    supervisor_resources: dict[str, float] = Field(
        default_factory=dict, description="Custom Ray resources of the supervisor."
    )
    runtime_env: dict[str, Any] = Field(
        default_factory=dict, description="Ray's runtime_env of every process: { env_vars = { … }, working_dir = '…' }."
    )

    @field_validator("engine_resources", "ingress_resources", "distiller_resources", "supervisor_resources")
    @classmethod
    def _are_custom_resources(cls, resources: dict[str, float]) -> dict[str, float]:
        for name, amount in resources.items():
            if name in ("CPU", "GPU", "memory"):
                raise ValueError(f"{name!r} is no custom resource; CPUs and GPUs have settings of their own")
            if amount <= 0:
                raise ValueError(f"{name!r} must be above 0")
        return resources

    @model_validator(mode="after")
    def _refuse_crossed_bounds(self) -> Self:
        if self.max_engines < self.min_engines:
            raise ValueError(f"max_engines ({self.max_engines}) is below min_engines ({self.min_engines})")
        return self
