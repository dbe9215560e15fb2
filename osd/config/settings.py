"""The settings: parsed once, frozen, one class per section; unknown keys are refused.

Precedence: TOML or YAML file < environment (`OSD_SECTION__FIELD`, and the short `OSD_REDIS_URL`, `OSD_PORT`) < flags.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)
from yaml import YAMLError

from osd.config.cluster import ClusterConfig
from osd.config.logs import LogConfig
from osd.config.monitor import MonitorConfig
from osd.config.section import Section
from osd.records.errors import OsdError
from osd.records.query import DOMAIN_PATTERN
from osd.records.rules import AcceptRule


class ConfigError(OsdError):
    """The configuration is wrong; the message names the key and the fix."""


class TargetConfig(Section):
    """The large model whose output is served."""

    model: str = Field("smollm2", description="Target: 'smollm2', a hub id, a local folder or a GGUF file.")
    revision: str = Field("", description="Branch, tag or commit of a hub id; empty: its main branch.")
    trust_remote_code: bool = Field(
        False, description="Run the Python code that models bring along; False refuses models that need it."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32", "int4"] = Field(
        "auto",
        description="Weights' dtype; auto takes the fastest that is no less exact than the stored one. "
        "int4 (CPU) quantises the layers' weights to four bits: another, faster target.",
    )
    device: str = Field("auto", description="'cpu', 'cuda', 'cuda:1'; auto takes a GPU when there is one.")
    threads: int = Field(0, ge=0, description="CPU threads of the engine; 0 takes all physical cores.")
    wait_for_kernels: bool = Field(
        False, description="Serve only once the CPU's kernels are compiled; False serves with torch until then."
    )
    max_context_tokens: int = Field(2048, ge=16, description="Longest prompt + output of one query, in tokens.")
    chat_template: str = Field("", description="Jinja template of chats: a file, or the text; empty: the model's own.")
    tool_call_format: Literal["auto", "hermes", "llama3_json", "mistral"] = Field(
        "auto", description="How the target writes tool calls; auto finds it in the chat template."
    )
    generation_config: str = Field(
        "auto",
        description="Where sampling defaults come from: auto: the model's generation_config.json; osd (or vllm): none, "
        "those of the API hold; or a folder that holds such a file.",
    )
    special_tokens_in_messages: bool = Field(
        False,
        description="Read '<|im_end|>' and the like in chat messages as special tokens, with which a message can end "
        "its turn and forge others; False reads them as plain text.",
    )


class EngineConfig(Section):
    """Batching."""

    id: str = Field(
        "engine",
        pattern="^[A-Za-z0-9._-]{1,64}$",
        description="Names this engine in outcomes and its spill file; engines that share a state_dir need one each.",
    )
    max_slots: int = Field(16, ge=1, description="Queries decoded at once.")
    max_waiting: int = Field(256, ge=0, description="Queries that may wait for a slot before new ones get 429.")
    prefill_chunk_tokens: int = Field(256, ge=1, description="Most prompt tokens per step, so that no prompt stalls.")
    prefix_caching: bool = Field(
        True, description="Reuse the KV cache of earlier queries, so that only the new part of a prompt is prefilled."
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
    suffix: bool = Field(
        True,
        description="Also propose what followed the same tokens in the query's own text or in recent answers of its "
        "domain, where that promises more than the drafter.",
    )
    suffix_bytes: int = Field(
        4 << 20, ge=0, description="Memory for these recent answers, about 9 bytes a token; 0 uses own text only."
    )


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


class StoreConfig(Section):
    """Where drafter versions and the trainer's checkpoint are kept."""

    url: str = Field(
        "",
        description="Folder, or URL that fsspec knows (s3://bucket/osd), which every node reaches; "
        "empty: the state folder.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of fsspec's file system: { endpoint_url = '…' } for S3, say."
    )


class SwapConfig(Section):
    """What happens around a hot swap."""

    poll_interval_s: float = Field(0.5, gt=0, description="How often the supervisor looks for a new version.")
    canary_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the engines that serve a new version first, at least one; default: one of three or more "
        "engines, all of fewer.",
    )
    watch_rounds: int = Field(400, ge=10, description="Rounds after a swap in which a fall of acceptance rolls back.")
    min_rounds: int = Field(20, ge=5, description="Rounds needed on each side before they are compared.")
    roll_back_z: float = Field(3.5, gt=0, description="Standard errors by which acceptance must fall for a roll back.")


Access = Literal["open", "api_key", "admin", "off"]


class ServerConfig(Section):
    """The HTTP server."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    model_names: tuple[str, ...] = Field((), description="Names that clients may use; empty: the target's own.")
    api_keys_sha256: tuple[str, ...] = Field((), description="SHA-256 (hex) of API keys; empty asks for none.")
    api_key_domains: dict[str, Annotated[str, Field(pattern=DOMAIN_PATTERN)]] = Field(
        default_factory=dict, description="Domains of queries that name none, by API key: { '<its SHA-256>' = 'sql' }."
    )
    admin_token_sha256: str = Field("", description="SHA-256 (hex) of the admin token; empty makes one per start.")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Largest request body.")
    receive_timeout_s: float = Field(
        30.0, gt=0, description="Longest time a client may take to send a request's headers, and then its body."
    )
    metrics_access: Access = Field(
        "open", description="Who may read /metrics: 'open', 'api_key', 'admin' (the admin token) or 'off'."
    )
    otlp_endpoint: str = Field(
        "", description="OTLP/HTTP collector of traces, such as http://127.0.0.1:4318/v1/traces; empty: no traces."
    )
    trace_share: float = Field(
        0.1, ge=0, le=1, description="Share of requests that are traced; a caller's own decision comes first."
    )
    vllm_metrics: bool = Field(False, description="Add the metrics that vLLM has under vLLM's names (vllm:…).")
    openapi_access: Access = Field("open", description="Who may read /openapi.json; values as for metrics_access.")
    request_timeout_s: float = Field(600.0, gt=0, description="Longest time that one query may take.")
    ping_interval_s: float = Field(
        10.0, gt=0, description="Silence after which a stream sends a ping; a queued query's stream then begins."
    )
    stored_responses_bytes: int = Field(
        32 << 20,
        ge=0,
        description="Memory for the newest responses of /v1/responses, to retrieve and continue; 0 keeps none.",
    )
    allowed_origins: tuple[str, ...] = Field(
        (),
        description="Sites whose pages may use the API from a browser (CORS), such as 'https://a.example'; '*' is any.",
    )
    ssl_certfile: str = Field("", description="PEM file of the TLS certificate (and chain); empty serves plain HTTP.")
    ssl_keyfile: str = Field("", description="PEM file of the certificate's key; empty: it is in ssl_certfile.")
    root_path: str = Field("", description="Path under which a reverse proxy serves this, such as '/llm'.")

    @field_validator("model_names")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if any(not name.strip() or len(name) > 256 for name in names):
            raise ValueError("a name has 1 to 256 characters")
        return names

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise ValueError(f"{origin!r} is not an origin; write scheme, host and port, as in 'https://a.example'")
        return origins

    @field_validator("root_path")
    @classmethod
    def _is_path(cls, path: str) -> str:
        if path and not re.fullmatch(r"(/[^/\s?#]+)+", path):
            raise ValueError("it must begin with '/' and not end with '/', as '/llm'")
        return path

    @model_validator(mode="after")
    def _refuse_key_without_certificate(self) -> Self:
        if self.ssl_keyfile and not self.ssl_certfile:
            raise ValueError("ssl_keyfile needs ssl_certfile")
        return self

    @model_validator(mode="after")
    def _refuse_missing_keys(self) -> Self:
        if unknown := set(self.api_key_domains) - set(self.api_keys_sha256):
            raise ValueError(f"api_key_domains: the key {min(unknown)!r} is not in api_keys_sha256")
        for name in ("metrics_access", "openapi_access"):
            if getattr(self, name) == "api_key" and not self.api_keys_sha256:
                raise ValueError(f"{name} = 'api_key' needs keys in api_keys_sha256")
        return self


def default_state_dir() -> Path:
    """`$XDG_STATE_HOME/osd`, or `~/.local/state/osd`."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "osd"


class Config(BaseSettings):
    """Everything an operator can set."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="OSD_", env_nested_delimiter="__")

    state_dir: Path = Field(default_factory=default_state_dir, description="Folder for weights, checkpoints, Redis.")
    target: TargetConfig = TargetConfig()
    engine: EngineConfig = EngineConfig()
    speculation: SpeculationConfig = SpeculationConfig()
    drafter: DrafterConfig = DrafterConfig()
    outcomes: OutcomesConfig = OutcomesConfig()
    trainer: TrainerConfig = TrainerConfig()
    store: StoreConfig = StoreConfig()
    swap: SwapConfig = SwapConfig()
    server: ServerConfig = ServerConfig()
    monitor: MonitorConfig = MonitorConfig()
    log: LogConfig = LogConfig()
    cluster: ClusterConfig = ClusterConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags before environment before the file."""
        is_yaml = bool(settings_cls.model_config.get("yaml_file"))
        file = (YamlConfigSettingsSource if is_yaml else TomlConfigSettingsSource)(settings_cls)
        return init_settings, env_settings, file


_FOR_COMMANDS = {"OSD_ADMIN_TOKEN"}
"""Environment variables read by commands, not settings: a configuration holds the admin token's hash only."""
_SHORT_ENVIRONMENT = {"OSD_REDIS_URL": ("outcomes", "redis_url"), "OSD_PORT": ("server", "port")}


def load_config(path: Path | None = None, flags: Mapping[str, Mapping[str, Any] | Any] | None = None) -> Config:
    """Merge a TOML or YAML file, environment and flags (`{"server": {"port": 8123}}`) into one frozen Config.

    Raises:
        ConfigError: a key is unknown or a value invalid; the message names each and its allowed values.
    """
    if path is not None and not path.is_file():
        raise ConfigError(f"config file {path} does not exist; give --config an existing TOML or YAML file")
    known = {f"OSD_{name.upper()}" for name in Config.model_fields}
    for name in os.environ:
        if name.startswith("OSD_") and name.split("__")[0] not in known | _SHORT_ENVIRONMENT.keys() | _FOR_COMMANDS:
            raise ConfigError(f"unknown environment variable {name}; `osd config show` lists every setting")

    is_yaml = path is not None and path.suffix in (".yaml", ".yml")

    class FromFile(Config):
        model_config = SettingsConfigDict(yaml_file=path) if is_yaml else SettingsConfigDict(toml_file=path)

    values: dict[str, Any] = {}
    for name, (section, field) in _SHORT_ENVIRONMENT.items():
        if os.environ.get(name):
            values.setdefault(section, {})[field] = os.environ[name]
    for key, value in (flags or {}).items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, Mapping) else value
    try:
        return Config.model_construct(**dict(FromFile(**values)))
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from None
    except (ValueError, TypeError, YAMLError) as error:  # an invalid file, or a section's variable without valid JSON
        why, named = " ".join(str(error).split()), f" {path}" if path else ""
        raise ConfigError(f"cannot read the configuration{named}: {why}") from None


def _explain(error: ValidationError, path: Path | None) -> str:
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting '{key}'; `osd config show` lists every setting")
        else:
            lines.append(f"setting '{key}': {problem['msg']} (got {problem['input']!r})")
    return (f"{path}: " if path else "") + "; ".join(lines)
