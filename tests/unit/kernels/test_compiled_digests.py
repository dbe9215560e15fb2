"""The process that compiles the loops computes what later ones do, which load them: to the last bit."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from osd.kernels.cpu.arrays import array
from osd.kernels.cpu.kernels import kernels
from osd.machine.arrays import Numbers
from osd.models.slot_model import SlotModel
from osd.records.query import SamplingParams
from osd.verify.logits import SampledRows
from osd.verify.shaping import RowShaping
from osd.verify.top_logprobs import top_logprobs
from tests.kit.backends import fastest

_VOCAB_TOKENS = 33_000
_SIZES = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 3, "num_key_value_heads": 1}
_PARAMS = [SamplingParams(temperature=0.8), SamplingParams(top_p=0.9), SamplingParams(top_k=40)]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1200)  # it compiles every kernel, with one thread
@pytest.mark.skipif(kernels() is None, reason="numba is not installed")
def test_what_is_compiled_is_what_is_stored(tmp_path: Path) -> None:
    fresh = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    compiling, loading = (
        subprocess.run([sys.executable, "-m", __name__], env=fresh, check=True, stdout=subprocess.PIPE).stdout
        for _ in range(2)
    )
    assert len(compiling.splitlines()) > 30
    assert loading == compiling


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=_VOCAB_TOKENS, num_hidden_layers=12, initializer_range=0.2, **_SIZES)
    model = LlamaForCausalLM(config).bfloat16()
    with torch.no_grad():  # of ones it would not matter in which order they are multiplied
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


def _results() -> Iterator[tuple[str, Numbers]]:
    """Of the same numbers in each process."""
    plain = _model()
    for is_int4 in (False, True):
        model = SlotModel(
            deepcopy(plain),
            fastest(),
            num_slots=4,
            max_context_tokens=64,
            max_new_tokens=32,
            frozen=True,
            is_int4=is_int4,
        )
        for num_rows, num_new in ((1, 30), (1, 1), (2, 3), (3, 5), (4, 8)):
            ids_BQ = torch.randint(_VOCAB_TOKENS, (num_rows, num_new))
            output = model.forward(0, ids_BQ, [9] * num_rows)
            name = f"{'codes' if is_int4 else 'weights'}, {num_rows} rows of {num_new} tokens:"
            yield f"{name} hidden states", output.hidden_BQH
            yield f"{name} logits", output.logits_BQV
    logits = fastest().logits((torch.randn(4, 1, _VOCAB_TOKENS) * 3).bfloat16())
    for of_row in top_logprobs(logits, [[5], [6], [7], [8]], 16):
        for values in of_row.read():
            yield "log-probabilities", values
    for params in _PARAMS:
        for uniform_S1 in torch.rand(200, 1, 1).tolist():
            case = SampledRows([0], [RowShaping.of(params)], [0], uniform_S1, None, "token")
            yield f"a draw, {params}", logits.judge(case)


if __name__ == "__main__":
    for name, numbers in _results():
        sys.stdout.write(f"{name} {hashlib.sha256(array(numbers).tobytes()).hexdigest()}\n")
