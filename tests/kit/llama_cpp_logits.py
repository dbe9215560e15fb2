"""llama.cpp's logits of a GGUF file, through llama-cpp-python, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch


def logits_of(path: Path, ids: Sequence[int]) -> torch.Tensor:
    """The logits `[position, vocabulary]` after each of these tokens, computed in float32."""
    command = [sys.executable, "-m", "tests.kit.llama_cpp_logits", str(path), *map(str, ids)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return torch.tensor(json.loads(done.stdout))


def _logits_here(path: str, ids: Sequence[int]) -> list[list[float]]:
    import llama_cpp

    model = llama_cpp.Llama(
        path, n_ctx=len(ids), n_threads=1, logits_all=True, type_k=0, type_v=0, flash_attn=False, verbose=False
    )
    model.eval(list(ids))
    scores: list[list[float]] = model.scores[: len(ids)].tolist()
    return scores


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_logits_here(sys.argv[1], [int(number) for number in sys.argv[2:]])))
