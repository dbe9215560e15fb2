"""Sampling defaults that a model's folder gives in `generation_config.json`."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from osd.records.errors import OsdError

_log = logging.getLogger(__name__)
_FILE = "generation_config.json"


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """The values of what a request leaves out; its own defaults are those of the OpenAI API."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None
    """None: no limit but the API's own."""


_IS_VALID: dict[str, Callable[[Any], bool]] = {
    "temperature": lambda value: 0 <= value <= 2,
    "top_p": lambda value: 0 < value <= 1,
    "top_k": lambda value: value >= 0 and value == int(value),
    "min_p": lambda value: 0 <= value <= 1,
    "repetition_penalty": lambda value: 0 < value <= 10,
    "max_new_tokens": lambda value: value >= 1 and value == int(value),
}


def sampling_defaults(folder: Path, source: str) -> SamplingDefaults:
    """The defaults of a served model. Values out of range are left out with a warning.

    Args:
        folder: the model's.
        source: "auto": the model's own; "osd" or "vllm": the API's; or another folder that holds the file.

    Raises:
        OsdError: another folder was named, and holds no such file.
    """
    if source in ("osd", "vllm"):
        return SamplingDefaults()
    path = (folder if source == "auto" else Path(source).expanduser()) / _FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if source == "auto":
            return SamplingDefaults()
        raise OsdError(f"setting 'target.generation_config': there is no {path}") from None
    except (OSError, ValueError) as error:
        raise OsdError(f"setting 'target.generation_config': cannot read {path}: {error}") from None
    return SamplingDefaults(**_valid(content if isinstance(content, dict) else {}, path))


def _valid(content: dict[str, Any], path: Path) -> dict[str, Any]:
    found = {}
    for name in (field.name for field in fields(SamplingDefaults)):
        value = content.get(name)
        if value is None:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool) and _IS_VALID[name](value):
            found[name] = int(value) if name in ("top_k", "max_new_tokens") else float(value)
        else:
            _log.warning("%s: %s %r is out of range, so it is no default", path, name, value)
    return found
