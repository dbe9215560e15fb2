"""Command-line options for settings, with the settings' own descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from osd.config.settings import Config, load_config


def setting(section: str, field: str, *flags: str) -> Any:
    """A typer option whose help is the setting's description and default."""
    info = Config.model_fields[section].default.__class__.model_fields[field]
    default = info.get_default(call_default_factory=True)
    shown = f" (default: {default})" if default not in ("", None, ()) else ""
    return typer.Option(*flags, help=f"{info.description}{shown}", show_default=False)


ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="TOML or YAML file with settings.", show_default=False)
]
StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help=f"{Config.model_fields['state_dir'].description}", show_default=False),
]
TargetModel = Annotated[str | None, setting("target", "model", "--target")]
DrafterKind = Annotated[str | None, setting("drafter", "kind", "--drafter")]
Domain = Annotated[str, typer.Option(help="Whose own drafter is meant; empty: the base drafter.", show_default=False)]


def configure(config_file: Path | None, state_dir: Path | None, **flags: Any) -> Config:
    """The configuration, with the given flags applied; flags are named `section__field`.

    Raises:
        ConfigError: a setting is unknown or its value invalid.
    """
    values: dict[str, Any] = {}
    for name, value in flags.items():
        if value is not None:
            section, field = name.split("__")
            values.setdefault(section, {})[field] = value
    if state_dir is not None:
        values["state_dir"] = state_dir.expanduser()
    return load_config(config_file, values)
