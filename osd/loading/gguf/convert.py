"""Converts a GGUF file to a folder that transformers loads, once per file content."""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from osd.config.paths import slug
from osd.loading.gguf.digest import digest_of
from osd.loading.gguf.header import Header
from osd.loading.gguf.split import parts_of, read_model, stem_of
from osd.loading.stored import DEQUANTISED
from osd.records.errors import OsdError

CONVERTER_VERSION = 2
"""Part of the folder's name. Raise it with every change of what is written, so that old folders are converted again."""
Progress = Callable[[str, float], None]


def converted(path: Path, models: Path, on_progress: Progress) -> Path:
    """The converted folder of a GGUF file. It is converted if needed: in a scratch folder, renamed when complete.

    Args:
        path: the file, or any part of a split one.
        models: the folder of all converted models.
        on_progress: called with (stage, share done).

    Raises:
        OsdError: the file cannot be converted.
    """
    parts = parts_of(path)
    if not all(part.is_file() for part in parts):
        read_model(path)  # raises an error that names the missing part
    models.mkdir(parents=True, exist_ok=True)
    folder = models / f"{slug(stem_of(path))}-{digest_of(parts, models)}-v{CONVERTER_VERSION}"
    if folder.is_dir():
        return folder
    with (models / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be converting the same file
        if folder.is_dir():
            return folder
        for left_behind in models.glob(f".{folder.name}-*"):  # of killed processes, since we hold the lock
            shutil.rmtree(left_behind, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=models))
        try:
            write_folder(path, scratch, on_progress)
            scratch.rename(folder)
        except OsdError:
            raise
        except Exception as error:
            raise OsdError(f"cannot convert {path}: {error}; is it a whole GGUF of a causal LM?") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def write_folder(path: Path, folder: Path, on_progress: Progress) -> None:
    """Convert a file.

    Args:
        path: the file, or any part of a split one.
        folder: an empty folder.
        on_progress: called with (stage, share done).

    Raises:
        OsdError: the file is incomplete, or has something that is not supported.
    """
    on_progress(f"converting {path.name} (once)", 0.0)
    header = read_model(path)
    _write_model(header, folder, on_progress)
    on_progress("writing the tokenizer", 0.9)
    _write_tokenizer(header, folder)
    on_progress("done", 1.0)


def _write_model(header: Header, folder: Path, on_progress: Progress) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from osd.loading.gguf.config import architecture_of, read_config
    from osd.loading.gguf.tensors import stored_dtype, weight_names, write_weights

    config = read_config(header)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = weight_names(header, model)
    config.architectures = [type(model).__name__]
    dtype = stored_dtype(header, names)
    config.dtype = dtype or torch.float32  # float32 represents dequantised weights exactly
    setattr(config, DEQUANTISED, dtype is None)
    config.save_pretrained(folder)
    write_weights(
        header,
        names,
        architecture_of(header),
        config,
        folder,
        lambda share: on_progress("writing weights", 0.1 + 0.8 * share),
    )


def _write_tokenizer(header: Header, folder: Path) -> None:
    from osd.loading.gguf.special_tokens import end_ids
    from osd.loading.gguf.tokenizer import read_tokenizer, token_texts

    tokens = token_texts(header)
    if (rows := header.tensors["token_embd.weight"].shape[0]) < len(tokens):
        raise OsdError(f"{header.path} has {len(tokens)} tokens and weights of {rows}; convert the model again")
    tokenizer = read_tokenizer(header)
    tokenizer.save_pretrained(folder)
    ends = {"eos_token_id": end_ids(header.metadata, tokens)}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad")}
    (folder / "generation_config.json").write_text(json.dumps({**ids, **ends}, indent=1))
