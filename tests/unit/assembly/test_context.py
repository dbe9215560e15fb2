"""The context that is served: as configured, or the model's own as far as memory holds it."""

from __future__ import annotations

import io
import os
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console

from osd.assembly.context import choose_context, position_bytes
from osd.config.drafter import DrafterConfig
from osd.config.settings import Config
from osd.config.target import EngineConfig, TargetConfig
from osd.kernels.backend import Backend
from osd.models.context import UNLIMITED_TOKENS, Context, longest_context
from osd.records.errors import OsdError
from osd.records.query import Request
from serving.cli.serve import _greet
from serving.cli.status import _tables
from serving.serve import Serving
from tests.kit.backends import TORCH, Undecoded
from tests.kit.engine_kit import (
    feature_drafter,
    feature_state,
    make_engine,
    make_target,
    manifest_of,
    model_drafter,
    run,
    swap,
    tiny_llama,
    weights_of,
)
from tests.kit.fake_status import fake_service
from tests.kit.saved_models import save_llama
from tests.unit.engine.cases import greedy

_OWN = 8192
_EACH_BYTES = 2 * 2 * 2 * 8 * 4 + 3 * 32 * 4 + 8
"""Keys and values of two layers with two heads of size 8; three times a hidden state of size 32; a token id."""


def _model() -> Any:
    model = tiny_llama()
    model.config.max_position_embeddings = _OWN
    return model


def _config(slots: int = 4, chunk: int = 32, **target: Any) -> Config:
    engine = EngineConfig(max_slots=slots, prefill_chunk_tokens=chunk)
    return Config(target=TargetConfig(**target), engine=engine)


def test_what_a_position_takes() -> None:
    assert position_bytes(_model()) == _EACH_BYTES
    assert position_bytes(_model(), hidden_layers=(0, 1, 1)) == _EACH_BYTES + 2 * 32 * 4
    assert position_bytes(_model().to(torch.bfloat16)) == (_EACH_BYTES - 8) // 2 + 8


def test_it_is_the_models_own_where_memory_holds_it() -> None:
    room = 4 * _EACH_BYTES * (_OWN + 32)
    assert choose_context(_config(), _model(), room_bytes=lambda model: room) == Context(_OWN, "the model's own")
    assert choose_context(_config(), _model()).num_tokens == _OWN  # this machine's memory
    assert longest_context(SimpleNamespace(), None) == UNLIMITED_TOKENS


@pytest.mark.parametrize(("slots", "num_tokens"), [(4, 1024), (2, 2560), (1, 5120)])
def test_memory_may_leave_less(slots: int, num_tokens: int) -> None:
    """Rows have a prefill chunk more than the context; the rest is rounded down."""
    room = 4 * _EACH_BYTES * (1024 + 255 + 32)
    context = choose_context(_config(slots), _model(), room_bytes=lambda model: room)
    assert context.num_tokens == num_tokens
    why = f"what memory holds for {slots} rows of 1 KiB a token (the model's own is 8192)"
    assert str(context) == f"context {num_tokens} tokens: {why}"


def test_hardly_any_memory_is_refused_with_what_to_do() -> None:
    room = 4 * _EACH_BYTES * (255 + 32)
    with pytest.raises(OsdError, match=r"4 rows .* less than 256 tokens each; set a smaller engine\.max_slots"):
        choose_context(_config(), _model(), room_bytes=lambda model: room)
    assert choose_context(_config(max_context_tokens=64), _model(), room_bytes=lambda model: room).num_tokens == 64


def test_a_configured_one_is_taken_as_far_as_the_model_goes() -> None:
    assert choose_context(_config(max_context_tokens=100), _model()) == Context(100, "target.max_context_tokens")
    beyond = choose_context(_config(max_context_tokens=9000), _model())
    assert beyond == Context(_OWN, "the model's own, below target.max_context_tokens (9000)")


def test_a_drafter_model_may_have_a_shorter_one(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "drafter", context_tokens=512)
    drafter = DrafterConfig(kind="model", model=str(folder))
    config = _config().model_copy(update={"drafter": drafter, "state_dir": tmp_path / "state"})
    context = choose_context(config, _model())
    assert context == Context(512, f"that of the drafter {str(folder)!r} (the model's own is 8192)")


def test_the_operator_is_told() -> None:
    service, out = fake_service(), io.StringIO()
    assert service.engine is not None
    line = service.engine.context
    _greet(Console(file=out), Serving("http://127.0.0.1:8000", "m", "feature v1", "CPU", None, context=line))
    assert line == "context 128 tokens: the model's own" in out.getvalue().splitlines()
    assert ("context", "128 tokens: the model's own") in dict(_tables(asdict(service)))["engine"]


@pytest.mark.parametrize("backend", [TORCH, Undecoded()], ids=["torch", "transformers"])
@pytest.mark.parametrize("kind", ["feature", "model"])
def test_a_long_context_takes_no_memory_before_it_is_used(backend: Backend, kind: str) -> None:
    """Neither when rows are made, nor by queries and hot swaps, which go over the positions in use only."""
    model = tiny_llama()
    model.config.max_position_embeddings = 1 << 16
    process, slots = psutil.Process(os.getpid()), 16
    before_bytes = process.memory_info().rss
    target = make_target(model, backend=backend, num_slots=slots, context_tokens=1 << 16)
    drafter: Any = feature_drafter(target) if kind == "feature" else model_drafter(tiny_llama(1), target)
    engine = make_engine(target, drafter, prefix_caching=False)
    requests = [Request(request_id=str(n), prompt_ids=(1, 2, 3 + n), params=greedy(12 + n)) for n in range(slots + 2)]
    run(engine, requests)
    state = feature_state(drafter.config, 2) if kind == "feature" else weights_of(tiny_llama(2))
    swap(engine, manifest_of(2, kind), state)
    took_bytes = process.memory_info().rss - before_bytes
    assert slots * (1 << 16) * _EACH_BYTES > 600 << 20
    assert took_bytes < 120 << 20
