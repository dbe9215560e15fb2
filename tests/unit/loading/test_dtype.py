"""Which type `auto` takes, and what an operator is told of it; what a CPU can do is given, not asked of this one."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from rich.console import Console

from benchmarks.pass_by_rows import _COMPILE_FOR, _fastest_ms
from osd.kernels.cpu.products.blocking import blocking_for
from osd.kernels.cpu.products.vectors import compiled_for
from osd.kernels.processor import Cpu, describe, this_cpu
from osd.loading.causal_lm import choose_dtype
from osd.loading.stored import DEQUANTISED, Stored, stored_in
from serving.cli.serve import _greet
from serving.cli.status import _tables
from serving.serve import Serving
from tests.kit.fake_status import fake_service

_AVX2 = Cpu("AVX2", multiplies_bfloat16=False, has_kernels=True)
_AVX2_WITHOUT_NUMBA = _AVX2._replace(has_kernels=False)
_ZEN_4 = Cpu("AVX512-BF16", multiplies_bfloat16=True, has_kernels=True)
_SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}


@pytest.mark.parametrize(
    ("stored", "fits_kernels", "cpu", "expected"),
    [
        # Kernels widen bfloat16 in registers: half the bytes, at the memory's speed.
        (torch.bfloat16, True, _AVX2, torch.bfloat16),
        # Torch does that far slower than it multiplies float32.
        (torch.bfloat16, False, _AVX2, torch.float32),
        (torch.bfloat16, True, _AVX2_WITHOUT_NUMBA, torch.float32),
        (torch.bfloat16, False, _ZEN_4, torch.bfloat16),
        (torch.bfloat16, True, _ZEN_4, torch.bfloat16),
        # Nothing is rounded unasked.
        (torch.float16, True, _AVX2, torch.float32),
        (torch.float16, True, _ZEN_4, torch.float32),
        (torch.float32, True, _AVX2, torch.float32),
        (torch.float32, True, _ZEN_4, torch.float32),
    ],
)
def test_auto_is_the_fastest_that_is_no_less_exact(
    stored: torch.dtype, fits_kernels: bool, cpu: Cpu, expected: torch.dtype
) -> None:
    assert choose_dtype("auto", torch.device("cpu"), Stored(stored, fits_kernels), cpu) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16), ("int4", torch.bfloat16)],
)
def test_a_type_that_is_asked_for_is_taken(name: str, expected: torch.dtype) -> None:
    stored = Stored(torch.float32, fits_kernels=True)
    assert choose_dtype(name, torch.device("cpu"), stored, _AVX2_WITHOUT_NUMBA) == expected


@pytest.mark.parametrize(
    ("kind", "settings", "fits"),
    [
        ("Llama", {"intermediate_size": 24}, True),
        ("Llama", {"intermediate_size": 24, "hidden_act": "gelu"}, False),
        ("OPT", {"ffn_dim": 24, "word_embed_proj_dim": 16}, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_stored_is_read_from_the_folder(
    kind: str, settings: dict[str, Any], fits: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    config = getattr(transformers, f"{kind}Config")(**_SIZES, **settings)
    getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).save_pretrained(tmp_path)
    assert stored_in(tmp_path) == (dtype, fits)


def test_codes_that_were_converted_count_as_bfloat16(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**_SIZES, intermediate_size=24)
    setattr(config, DEQUANTISED, True)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert stored_in(tmp_path) == (torch.bfloat16, True)


def test_a_folder_that_names_no_type_holds_float32(tmp_path: Path) -> None:
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**_SIZES, intermediate_size=24)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}))
    assert stored_in(tmp_path) == (torch.float32, True)


@pytest.mark.parametrize(
    ("dtype", "how", "cpu", "line"),
    [
        (torch.bfloat16, {}, _AVX2, "AVX2, bfloat16 weights widened in registers"),
        (torch.bfloat16, {}, _ZEN_4._replace(instructions="AVX-512"), "AVX-512, bfloat16 weights widened in registers"),
        (torch.bfloat16, {}, _ZEN_4, "AVX512-BF16, bfloat16 weights multiplied as they are"),
        (torch.bfloat16, {}, _ZEN_4._replace(instructions="AMX"), "AMX, bfloat16 weights multiplied as they are"),
        (torch.float32, {}, _AVX2, "AVX2, float32 weights by compiled kernels"),
        (torch.float32, {"is_compiled": False}, _AVX2, "AVX2, float32 weights by torch's operations"),
        (torch.bfloat16, {"is_int4": True}, _AVX2, "AVX2, int4 layers, the rest in bfloat16 widened in registers"),
    ],
)
def test_an_operator_is_told_how_weights_are_read(
    dtype: torch.dtype, how: dict[str, bool], cpu: Cpu, line: str
) -> None:
    assert describe(torch.device("cpu"), dtype, **{"is_compiled": True, **how}, cpu=cpu) == f"CPU: {line}"


def test_this_cpu_has_a_name_and_what_torch_says_of_it() -> None:
    cpu = this_cpu()
    assert cpu.instructions and cpu.multiplies_bfloat16 == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_osd_serve_and_osd_status_show_the_line() -> None:
    service, out = fake_service(), io.StringIO()
    assert service.engine is not None
    line = service.engine.computes
    assert line
    _greet(Console(file=out), Serving("http://127.0.0.1:8000", "m", "feature v1", line, admin_token=None))
    assert line in out.getvalue().splitlines()
    assert ("computes", line) in dict(_tables(asdict(service)))["engine"]


@pytest.mark.parametrize("name", ["AVX-512", "AVX2"])
def test_the_benchmark_compiles_for_what_it_says(name: str) -> None:
    settings = _COMPILE_FOR[name]
    features = compiled_for(settings.get("NUMBA_CPU_NAME"), settings.get("NUMBA_CPU_FEATURES"))
    assert blocking_for(features).name == name


def test_the_benchmark_times_each_work_and_not_what_prepares_it() -> None:
    order: list[str] = []

    def prepare(number: int) -> Callable[[], object]:
        order.append(f"prepare {number}")
        return lambda: order.append(f"work {number}")

    took_ms = _fastest_ms({number: partial(prepare, number) for number in (1, 2)}, repeats=2)
    assert order == 2 * ["prepare 1", "work 1", "prepare 2", "work 2"]
    assert set(took_ms) == {1, 2} and all(0 <= one < 1e3 for one in took_ms.values())
