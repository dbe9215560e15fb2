"""From a configuration and a folder to a trainer that publishes into a real store."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from osd.config.settings import Config, ConfigError, load_config
from osd.drafters.create import create_initial
from osd.io.weight_store import FileWeightStore
from osd.records.errors import OsdError
from tests.kit.trainer_fakes import HIDDEN_SIZE, FakeSource, learnable_outcome, tiny_llama
from trainer.build import build_student, build_trainer


@pytest.fixture
def target_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    tiny_llama().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def _config(state_dir: Path, kind: str, **trainer: object) -> Config:
    return load_config(
        flags={
            "state_dir": state_dir,
            "drafter": {"kind": kind, "vocab_tokens": 16, "window_tokens": 8, "layers": 1},
            "trainer": {
                "device": "cpu",
                "learning_rate": 0.01,
                "warmup_steps": 0,
                "gate_every_steps": 10,
                "held_out_share": 0.25,
                "batch_tokens": 64,
                **trainer,
            },
        }
    )


def _source(kind: str = "feature") -> FakeSource:
    source = FakeSource()
    for number in range(30):
        source.put(learnable_outcome(number, (3 if kind == "eagle3" else 1) * HIDDEN_SIZE))
    return source


@pytest.mark.parametrize("kind", ["feature", "model", "eagle3"])
def test_a_built_trainer_publishes_versions_that_the_store_accepts(
    tmp_path: Path, target_folder: Path, kind: str
) -> None:
    config = _config(tmp_path, kind)
    store = FileWeightStore(tmp_path / "weights")
    drafter_config, state = create_initial(config, target_folder)
    store.publish(state, kind=kind, config=drafter_config, parent=None)
    trainer = build_trainer(config, target_folder, store, _source(kind), target_id="tiny")
    for _ in range(40):
        trainer.run_once()
    latest = store.latest()
    assert latest is not None and latest.number > 1 and latest.parent is not None
    assert latest.config_hash == store.list()[0].config_hash
    _, trained = store.load(latest.number)
    assert trained.keys() == state.keys()
    assert all(tensor.shape == state[name].shape for name, tensor in trained.items())
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in trained.values())
    assert trainer.status().message == ""
    again = build_trainer(config, target_folder, store, _source(kind), target_id="tiny")
    assert again.status().steps == trainer.status().steps  # the checkpoint of the latest attempt to publish


def test_it_waits_for_the_engine_s_first_version(tmp_path: Path, target_folder: Path) -> None:
    config, store = _config(tmp_path, "feature"), FileWeightStore(tmp_path / "weights")
    with pytest.raises(OsdError, match="is the engine running"):
        build_trainer(config, target_folder, store, _source(), target_id="tiny", wait_s=0.0)
    stop = threading.Event()
    stop.set()
    with pytest.raises(OsdError, match="is the engine running"):
        build_trainer(config, target_folder, store, _source(), target_id="tiny", stop=stop)


def test_another_kind_of_drafter_or_a_wrong_optimizer_is_refused(tmp_path: Path, target_folder: Path) -> None:
    store = FileWeightStore(tmp_path / "weights")
    drafter_config, state = create_initial(_config(tmp_path, "feature"), target_folder)
    store.publish(state, kind="feature", config=drafter_config, parent=None)
    with pytest.raises(OsdError, match="is a 'feature' drafter, configured is 'model'"):
        build_trainer(_config(tmp_path, "model"), target_folder, store, _source(), target_id="tiny")
    with pytest.raises(OsdError, match="did you mean AdamW"):
        config = _config(tmp_path, "feature", optimizer="AdamWW")
        build_trainer(config, target_folder, store, _source(), target_id="tiny")


@pytest.mark.parametrize(
    ("kind", "rejected_top_k", "named"), [("feature", 0, "outcomes.rejected_top_k"), ("model", 8, "drafter.kind")]
)
def test_a_loss_on_rejected_tokens_that_would_have_no_effect_is_refused(
    tmp_path: Path, kind: str, rejected_top_k: int, named: str
) -> None:
    config = _config(tmp_path, kind, rejected_loss="reverse_kl")
    outcomes = config.outcomes.model_copy(update={"rejected_top_k": rejected_top_k})
    with pytest.raises(ConfigError, match=named):
        build_trainer(
            config.model_copy(update={"outcomes": outcomes}),
            tmp_path,
            FileWeightStore(tmp_path),
            FakeSource(),
            target_id="tiny",
        )


def test_a_loss_on_rejected_tokens_reaches_the_student(tmp_path: Path, target_folder: Path) -> None:
    config = _config(tmp_path, "feature", rejected_loss="reverse_kl", unroll_steps=4)
    store = FileWeightStore(tmp_path / "weights")
    drafter_config, state = create_initial(config, target_folder)
    manifest = store.publish(state, kind="feature", config=drafter_config, parent=None)
    assert build_student(config, manifest, target_folder).alignment.branch_depth == 4
    assert build_student(_config(tmp_path, "feature"), manifest, target_folder).alignment.branch_depth == 0
