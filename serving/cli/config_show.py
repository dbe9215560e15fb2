"""`osd config`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

from osd.config.settings import Config
from serving.cli.options import ConfigFile, StateDir, configure

app = typer.Typer(help="The configuration.")


@app.callback()
def config() -> None:
    """The configuration."""


@app.command("show")
def show(config: ConfigFile = None, state_dir: StateDir = None) -> None:
    """Print every setting with its description, as TOML that `--config` accepts."""
    typer.echo(as_toml(configure(config, state_dir)))


def as_toml(settings: Config) -> str:
    """TOML with each setting's description above it; settings without a value are commented out."""
    lines = [f"# {Config.model_fields['state_dir'].description}", f"state_dir = {_value(settings.state_dir)}"]
    for section, field in Config.model_fields.items():
        if section == "state_dir":
            continue
        values = getattr(settings, section)
        lines += ["", f"# {(type(values).__doc__ or field.title or '').strip()}", f"[{section}]"]
        for name, info in type(values).model_fields.items():
            value = getattr(values, name)
            lines.append(f"# {info.description}")
            lines.append(f"# {name} =" if value is None else f"{name} = {_value(value)}")
    return "\n".join(lines)


def _value(value: Any) -> str:
    """A TOML value: strings, numbers, booleans and lists are written as JSON, tables inline."""
    if isinstance(value, Path):
        return json.dumps(str(value))
    if isinstance(value, BaseModel):
        return _value(value.model_dump())
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
