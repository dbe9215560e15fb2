"""Offline distillation: on a tiny target, for real; and the file that carries its result elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from osd.assemble import open_engine, open_store
from osd.config import Config, load_config
from osd.drafters.portable import read_drafter, write_drafter
from osd.models.resolve import ResolvedTarget, resolve_target
from osd.text import TextCodec
from osd.types import Event, WeightsRefusedError
from tests.saved_models import save_llama
from trainer.distill import DistillProgress, distill
from trainer.self_generated import Collector, SelfGenerated

_PROMPTS = ["the sea is", "list three fruits", "def add(a, b):", "once upon a time", "12 + 30 =", "hello, who are you"]
_MAX_TOKENS = 24


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Config:
    trainer = {"min_records": 2, "held_out_share": 0.3, "gate_every_steps": 10, "learning_rate": 3e-3}
    return load_config(
        None,
        {
            "state_dir": tmp_path,
            "target": {"model": str(folder), "dtype": "float32", "max_context_tokens": 128, "threads": 1},
            "engine": {"max_slots": 4},
            "drafter": {"vocab_tokens": 128},
            "trainer": {**trainer, "warmup_steps": 5, "batch_tokens": 128},
        },
    )


@pytest.fixture
def resolved(config: Config) -> ResolvedTarget:
    return resolve_target(config.target.model, config.state_dir)


def _prompts(resolved: ResolvedTarget, config: Config) -> list[tuple[int, ...]]:
    codec = TextCodec.open(resolved.folder, resolved.target_id, config.target.max_context_tokens)
    return [codec.encode_text(prompt) for prompt in _PROMPTS]


def _distill(config: Config, resolved: ResolvedTarget, num_answers: int, **more: Any) -> list[DistillProgress]:
    seen: list[DistillProgress] = []
    prompts = _prompts(resolved, config)
    distill(config, resolved, prompts, num_answers=num_answers, max_tokens=_MAX_TOKENS, on_progress=seen.append, **more)
    return seen


def test_it_learns_from_the_targets_own_answers(config: Config, resolved: ResolvedTarget) -> None:
    events: list[Event] = []
    seen = _distill(config, resolved, 24, passes=8.0, on_event=events.append)
    assert seen[-1].answers == 24 and 0.5 * 24 * _MAX_TOKENS < seen[-1].output_tokens <= 24 * _MAX_TOKENS
    assert seen[-1].trained_tokens >= 8 * seen[-1].output_tokens
    # Once there is enough to train on, no more than one batch of answers is made ahead of the trainer.
    assert all(now.trained_tokens >= 8 * (now.output_tokens - 4 * _MAX_TOKENS) for now in seen if now.steps > 1)
    latest = open_store(config, resolved).latest()
    assert latest is not None and latest.number > 1
    assert latest.gate["candidate"] > latest.gate["serving"]
    assert any(event.kind == "publish" for event in events)


def test_it_goes_on_where_it_was(config: Config, resolved: ResolvedTarget) -> None:
    first = _distill(config, resolved, 8, passes=2.0)
    more = _distill(config, resolved, 16, passes=2.0)
    assert more[-1].answers == 16
    assert 0 < more[-1].output_tokens <= 8 * _MAX_TOKENS  # the first eight are not made again
    assert more[0].steps >= first[-1].steps
    again = _distill(config, resolved, 16, passes=2.0)
    assert again[-1].output_tokens == 0


def test_the_first_answer_is_greedy_and_further_ones_are_sampled(config: Config, resolved: ResolvedTarget) -> None:
    collector = Collector()
    engine = open_engine(config, recorder=collector)
    source = SelfGenerated(
        engine, collector, _prompts(resolved, config)[:2], num_answers=6, max_tokens=8, wants_more=lambda: True
    )
    outcomes = []
    while not source.exhausted:
        outcomes += [outcome for _, outcome in source.read(64, 0)]
    by_number = {int(outcome.request_id): outcome for outcome in outcomes}
    assert sorted(by_number) == list(range(6)) and source.lag() == 0
    assert [by_number[number].sampling.temperature for number in range(6)] == [0.0, 0.0, 0.8, 0.8, 0.8, 0.8]
    assert by_number[2].output_ids != by_number[4].output_ids


def test_nothing_is_generated_while_the_trainer_is_busy(config: Config, resolved: ResolvedTarget) -> None:
    collector = Collector()
    engine = open_engine(config, recorder=collector)
    source = SelfGenerated(
        engine, collector, _prompts(resolved, config), num_answers=6, max_tokens=8, wants_more=lambda: False
    )
    assert source.read(64, 0) == [] and not engine.has_work and not source.exhausted


def test_a_drafter_file_says_what_it_is(config: Config, resolved: ResolvedTarget, tmp_path: Path) -> None:
    open_engine(config)
    store = open_store(config, resolved)
    manifest, state = store.load(1)
    write_drafter(tmp_path / "drafter.safetensors", resolved.target_id, manifest, state, {"prompts": "p.jsonl"})
    portable = read_drafter(tmp_path / "drafter.safetensors")
    assert (portable.kind, portable.config, portable.target_id) == ("feature", manifest.config, resolved.target_id)
    assert portable.card["prompts"] == "p.jsonl"
    for name, tensor in state.items():
        torch.testing.assert_close(portable.state[name].to(tensor.dtype), tensor, atol=0.01, rtol=0.01)


def test_a_torn_or_foreign_drafter_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "drafter.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(WeightsRefusedError, match="no whole drafter file"):
        read_drafter(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(WeightsRefusedError, match="no whole drafter file"):
        read_drafter(path)
