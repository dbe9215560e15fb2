"""Offline distillation: on a tiny target, for real; and the file that carries its result elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from osd.assembly.drafter import open_store
from osd.assembly.engine import open_engine
from osd.config.settings import Config, load_config
from osd.drafters.portable import read_drafter, write_drafter
from osd.loading.resolve import ResolvedTarget, resolve_target
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.events import Event
from osd.text.codec import TextCodec
from tests.kit.saved_models import save_llama
from trainer.build import build_student
from trainer.offline.answers import AnswerFolder, Collector, answers_key, make_answers
from trainer.offline.distill import DistillProgress, distill
from trainer.offline.offline import OfflineTrainer

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
            "trainer": {"learning_rate": 1e-3, "warmup_steps": 5, "batch_tokens": 128, **trainer},
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
    assert max(now.answers for now in seen) == 24
    assert seen[-1].trained_share == 1.0 and seen[-1].trained_tokens > 4 * 24 * _MAX_TOKENS
    latest = open_store(config, resolved).latest()
    assert latest is not None and latest.number == 2
    assert latest.gate["candidate"] > latest.gate["serving"]
    assert [event.kind for event in events] == ["publish"]


def test_it_goes_on_where_it_was(config: Config, resolved: ResolvedTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _distill(config, resolved, 24, passes=2.0)
    expected = open_store(config, resolved).load(2)[1]
    with monkeypatch.context() as patch:
        # The target is not opened when no answer is missing.
        patch.setattr("trainer.offline.distill.open_answering", None)
        again = _distill(config, resolved, 24, passes=2.0)
    assert again == [] and whole  # nothing is left to do
    # Killed in the middle of training, after a checkpoint.
    other = config.model_copy(update={"state_dir": config.state_dir / "other"})
    stopped: list[DistillProgress] = []

    def stop(now: DistillProgress) -> None:
        stopped.append(now)
        if now.trained_share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(
            other,
            resolved,
            _prompts(resolved, other),
            num_answers=24,
            max_tokens=_MAX_TOKENS,
            passes=2.0,
            checkpoint_every_s=0.0,
            on_progress=stop,
        )
    resumed = _distill(other, resolved, 24, passes=2.0)
    assert resumed[0].steps == stopped[-1].steps  # the step that was told of last had not been saved
    assert resumed[-1].steps == whole[-1].steps and resumed[-1].trained_tokens == whole[-1].trained_tokens
    for name, tensor in open_store(other, resolved).load(2)[1].items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_the_first_answer_is_greedy_and_further_ones_are_sampled(
    config: Config, resolved: ResolvedTarget, tmp_path: Path
) -> None:
    collector, folder = Collector(), AnswerFolder(tmp_path / "answers")
    engine = open_engine(config, recorder=collector)
    prompts = _prompts(resolved, config)[:2]
    make_answers(engine, collector, folder, prompts, num_answers=3, max_tokens=8)
    first = {int(outcome.request_id): outcome for outcome in folder}
    make_answers(engine, collector, folder, prompts, num_answers=6, max_tokens=8)
    by_number = {int(outcome.request_id): outcome for outcome in folder}
    assert sorted(first) == [0, 1, 2] and sorted(by_number) == list(range(6))
    assert all(by_number[number] == first[number] for number in first)  # not made again
    assert [by_number[number].sampling.temperature for number in range(6)] == [0.0, 0.0, 0.8, 0.8, 0.8, 0.8]
    assert by_number[2].output_ids != by_number[4].output_ids


def test_what_is_held_out_is_held_out_by_its_prompt(config: Config, resolved: ResolvedTarget, tmp_path: Path) -> None:
    collector, folder = Collector(), AnswerFolder(tmp_path / "answers")
    engine = open_engine(config, recorder=collector)
    make_answers(engine, collector, folder, _prompts(resolved, config), num_answers=24, max_tokens=8)
    store = open_store(config, resolved)
    latest = store.latest()
    assert latest is not None
    student = build_student(config, latest, resolved.folder)
    trainer = OfflineTrainer(config.trainer, student, store, tmp_path / "c", list(folder), passes=1.0)
    train, held_out = ({one.prompt_ids for one in group} for group in (trainer.train, trainer.held_out))
    assert train and held_out and not train & held_out


def test_answers_of_a_namesake_are_not_taken() -> None:
    """Drafters of both are filed under the name, but other weights give other answers."""
    key = answers_key(Path("here/model"), [(1, 2)], 8)
    assert key == answers_key(Path("here/model"), [(1, 2)], 8)
    assert key != answers_key(Path("there/model"), [(1, 2)], 8)


def test_answers_made_for_another_kind_of_drafter_are_not_taken(config: Config, resolved: ResolvedTarget) -> None:
    """They lack the hidden states that this kind reads, so nothing could be learnt from them."""
    for kind in ("model", "feature", "eagle3"):
        own = config.model_copy(update={"drafter": config.drafter.model_copy(update={"kind": kind})})
        assert _distill(own, resolved, 12, passes=0.5)[-1].trained_share == 1.0


def test_too_few_answers_are_refused(config: Config, resolved: ResolvedTarget) -> None:
    with pytest.raises(OsdError, match="give more prompts"):
        distill(config, resolved, _prompts(resolved, config)[:1], num_answers=1, max_tokens=8, passes=1.0)


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
