"""Paths of everything that osd keeps in its state folder."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote


def slug(text: str) -> str:
    """A file-name-safe form of a model id."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "model"


def weights_path(target_id: str, drafter: str) -> str:
    """The versions of one drafter for one target, relative to the store (`store.url`, else the state folder)."""
    return f"weights/{slug(target_id)}/{_file_name(drafter)}"


def checkpoint_dir(state_dir: Path, target_id: str, drafter: str) -> Path:
    """The trainer's checkpoint for one drafter of one target."""
    return state_dir / checkpoint_path(target_id, drafter)


def checkpoint_path(target_id: str, drafter: str) -> str:
    """The same, relative to the store (`store.url`, else the state folder)."""
    return f"checkpoints/{slug(target_id)}/{_file_name(drafter)}"


def _file_name(drafter: str) -> str:
    """A drafter's name as a folder's; different names, such as of the domains `a:b` and `a-b`, never share one."""
    return quote(drafter, safe="")


def answers_dir(state_dir: Path, target_id: str, key: str) -> Path:
    """The target's own answers to one set of prompts, made by `osd drafter distill`."""
    return state_dir / "answers" / slug(target_id) / key


def models_dir(state_dir: Path) -> Path:
    """Models converted from GGUF."""
    return state_dir / "models"


def redis_dir(state_dir: Path) -> Path:
    """The embedded redis-server's append-only file and socket."""
    return state_dir / "redis"


def spill_path(state_dir: Path, engine_id: str) -> Path:
    """The file of one engine's outcomes that wait for Redis to come back."""
    return state_dir / "spill" / f"{engine_id}.spill"


def former_spill_path(state_dir: Path) -> Path:
    """Where they waited before engines had ids."""
    return state_dir / "outcomes.spill"


def admin_token_path(state_dir: Path) -> Path:
    """The admin token that was made for an application in a Ray cluster."""
    return state_dir / "admin_token"


def log_path(state_dir: Path) -> Path:
    """The log of all processes on this machine."""
    return state_dir / "logs" / "osd.log"
