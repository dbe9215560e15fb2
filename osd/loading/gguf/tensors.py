"""Writes the weights of a GGUF file as safetensors, under transformers' names."""

from __future__ import annotations

import json
import math
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from osd.loading.gguf.architectures import Architecture
from osd.loading.gguf.header import Header, TensorInfo
from osd.records.errors import OsdError

_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
SHARD_BYTES = 4 << 30
_NOT_WEIGHTS = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight")
"""RoPE tables: the first goes into the configuration, the others repeat what the configuration yields."""


def read_tensor(info: TensorInfo) -> NDArray[Any]:
    """A tensor's stored bytes, memory-mapped; a quantised tensor's blocks are rows of bytes."""
    raw: NDArray[Any] = np.memmap(info.path, np.uint8, "r", info.offset_bytes, (info.size_bytes,))
    if info.kind == GGMLQuantizationType.F32:
        return raw.view(np.float32).reshape(info.shape)
    if info.kind == GGMLQuantizationType.F16:
        return raw.view(np.float16).reshape(info.shape)
    return raw.reshape(*info.shape[:-1], -1)


def weight_names(header: Header, model: Any) -> dict[str, str]:
    """Map the name of each weight of a transformers model to its name in the file.

    Args:
        header: the file's header.
        model: the transformers model, on the meta device.

    Raises:
        OsdError: the file lacks a weight, has one of another shape, or has one that the model does not.
    """
    architecture = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == header.architecture)
    known = get_tensor_name_map(architecture, model.config.num_hidden_layers)
    state: Mapping[str, Tensor] = model.state_dict()
    names = {}
    for name, weight in state.items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        stored = f"{known.get_name(stem)}.{suffix}"
        if stored not in header.tensors:
            raise OsdError(f"{header.path} lacks the tensor {stored!r}; download it again, with all of its parts")
        if header.tensors[stored].shape != tuple(weight.shape):
            raise OsdError(
                f"{header.path}: {stored!r} has shape {header.tensors[stored].shape}, and the metadata asks for "
                f"{tuple(weight.shape)}; convert the model again"
            )
        names[name] = stored
    if rest := sorted(name for name in header.tensors.keys() - names.values() if not _NOT_WEIGHTS.fullmatch(name)):
        raise OsdError(
            f"{header.path} has a tensor {rest[0]!r} that {header.architecture} models here have no place for; "
            "give the model's own folder (safetensors) instead"
        )
    return names


def stored_dtype(header: Header, names: Mapping[str, str]) -> torch.dtype | None:
    """The dtype in which most weights are stored; None if those are quantised."""
    sizes: dict[torch.dtype | None, int] = {}
    for stored in names.values():
        info = header.tensors[stored]
        dtype = _PLAIN.get(info.kind)
        sizes[dtype] = sizes.get(dtype, 0) + math.prod(info.shape)
    return max(sizes, key=lambda dtype: sizes[dtype])


def write_weights(
    header: Header,
    names: Mapping[str, str],
    architecture: Architecture,
    config: Any,
    folder: Path,
    on_share: Callable[[float], None],
) -> None:
    """Write all weights as safetensors, in files of four gigabytes.

    Args:
        header: the file's header.
        names: each weight's name in the file.
        architecture: says how to undo the changes that the GGUF converter made to some weights.
        config: the model's configuration.
        folder: where to write.
        on_share: called with the share done.

    Raises:
        OsdError: a tensor has a type that cannot be dequantised.
    """
    shard: dict[str, Tensor] = {}
    shards: list[list[str]] = []
    waiting_bytes = 0

    def flush() -> None:
        nonlocal waiting_bytes
        save_file(shard, folder / _shard_name(len(shards)), metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()
        waiting_bytes = 0

    for number, (name, weight) in enumerate(_restored(header, names, architecture, config)):
        shard[name] = weight
        waiting_bytes += weight.nbytes
        on_share((number + 1) / len(names))
        if waiting_bytes >= SHARD_BYTES:
            flush()
    if shard:
        flush()
    if len(shards) == 1:
        (folder / _shard_name(0)).rename(folder / "model.safetensors")
        return
    weight_map = {name: _shard_name(number) for number, held in enumerate(shards) for name in held}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _shard_name(number: int) -> str:
    return f"model-{number + 1:05}.safetensors"


def _restored(
    header: Header, names: Mapping[str, str], architecture: Architecture, config: Any
) -> Iterator[tuple[str, Tensor]]:
    """The weights in order; the next ones are dequantised meanwhile by a thread pool (numpy releases the GIL)."""

    def read(stored: str) -> Tensor:
        return architecture.restore(stored, _dequantised(header.tensors[stored]), config).contiguous()

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[tuple[str, Future[Tensor]]] = deque()
        for name, stored in names.items():
            ahead.append((name, pool.submit(read, stored)))
            if len(ahead) > 2 * workers:
                first, future = ahead.popleft()
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()


def _dequantised(info: TensorInfo) -> Tensor:
    raw = read_tensor(info)
    if info.kind == GGMLQuantizationType.BF16:
        return torch.from_numpy(np.array(raw)).view(torch.bfloat16)
    if info.kind in _PLAIN:
        return torch.from_numpy(np.array(raw))
    try:
        return torch.from_numpy(dequantize(raw, info.kind))
    except NotImplementedError:
        raise OsdError(
            f"{info.path}: {info.name!r} is {info.kind.name}, which cannot be read; take another file"
        ) from None
