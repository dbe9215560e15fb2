"""The settings: parsed once, frozen, one class per section (its module names it); unknown keys are refused.

Precedence: TOML or YAML file < environment (`OSD_SECTION__FIELD`, and the short `OSD_REDIS_URL`, `OSD_PORT`) < flags.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
    YamlConfigSettingsSource,
)
from yaml import YAMLError

from osd.config.cluster import ClusterConfig
from osd.config.drafter import DrafterConfig, SpeculationConfig
from osd.config.logs import LogConfig
from osd.config.monitor import MonitorConfig
from osd.config.outcomes import OutcomesConfig
from osd.config.server import ServerConfig
from osd.config.target import EngineConfig, TargetConfig
from osd.config.trainer import TrainerConfig
from osd.config.versions import StoreConfig, SwapConfig
from osd.records.errors import OsdError


class ConfigError(OsdError):
    """The configuration is wrong; the message names the key and the fix."""


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
