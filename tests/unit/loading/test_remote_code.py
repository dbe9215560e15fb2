"""Models that bring Python code along, and revisions of hub ids; the hub is a fake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from osd.assembly.drafter import open_store
from osd.assembly.engine import load_engine
from osd.assembly.kernels import Prepared
from osd.assembly.target import open_target
from osd.config.settings import Config, load_config
from osd.drafters.create import check_drafter_model, create_initial
from osd.loading.causal_lm import load_causal_lm
from osd.loading.resolve import ResolvedTarget, configured_target
from osd.loading.shared_rows import load_shared_rows
from osd.loading.stored import stored_in
from osd.records.errors import OsdError
from osd.records.query import SamplingParams
from osd.text.codec import TextCodec
from tests.kit.backends import TORCH
from tests.kit.saved_models import save_llama

CPU = torch.device("cpu")
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({mark!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "osd-own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """Exists once the model's code was run."""
    return tmp_path / "ran"


@pytest.fixture
def folder(tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Llama under a name that transformers does not know, and the code for it."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    folder = save_llama(tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    config |= {"model_type": "osd-own", "architectures": ["OwnForCausalLM"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    return folder


def configured(folder: Path | str, state_dir: Path, **target: Any) -> Config:
    flags = {"target": {"model": str(folder), "max_context_tokens": 128, **target}, "state_dir": state_dir}
    return load_config(flags={**flags, "engine": {"max_slots": 2}, "outcomes": {"enabled": False}})


def test_code_is_not_run_unless_that_is_asked_for(folder: Path, mark: Path, tmp_path: Path) -> None:
    config = configured(folder, tmp_path / "state")
    assert stored_in(folder).fits_kernels is False
    for load in (
        lambda: load_causal_lm(folder, dtype=torch.float32, device=CPU),
        lambda: TextCodec.configured(folder, "own", config.target),
        lambda: open_target(config, configured_target(config), TORCH),
    ):
        with pytest.raises(OsdError, match="give --trust-remote-code if you trust it") as caught:
            load()
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_a_trusted_model_is_served(folder: Path, mark: Path, tmp_path: Path) -> None:
    config = configured(folder, tmp_path / "state", trust_remote_code=True)
    prompt = "The sea is"
    resolved = configured_target(config)
    store = open_store(config, resolved)
    engine = load_engine(config, resolved, Prepared(TORCH, None), store, recorder=None, on_event=print)
    assert mark.exists() and type(engine.target.lm.model).__name__ == "OwnForCausalLM"
    deltas = engine.generate([prompt], SamplingParams(temperature=0.0, max_tokens=12))
    answer = [token for delta in deltas for token in delta.token_ids]
    model = load_causal_lm(folder, dtype=engine.target.lm.dtype, device=CPU, trust_remote_code=True)
    ids = torch.tensor([engine.codec.encode_text(prompt)])
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert answer == expected.tolist()


def test_its_dtype_rows_and_drafter_are_read_by_its_own_code(folder: Path, tmp_path: Path) -> None:
    config = configured(folder, tmp_path / "state", trust_remote_code=True)
    model = load_causal_lm(folder, dtype=torch.float32, device=CPU, trust_remote_code=True)
    rows = load_shared_rows(folder, torch.float32, trust_remote_code=True)
    assert torch.equal(rows.embedding_VH, model.get_input_embeddings().weight)
    assert stored_in(folder, trust_remote_code=True) == (torch.float32, False)
    for drafter in ({"kind": "feature"}, {"kind": "model", "layers": 1}):
        kind = config.model_copy(update={"drafter": config.drafter.model_copy(update=drafter)})
        assert create_initial(kind, folder)[1]
    same = config.drafter.model_copy(update={"kind": "model", "model": str(folder)})
    assert check_drafter_model(config.model_copy(update={"drafter": same}), folder) == folder


class FakeHub:
    """Stands for `huggingface_hub.snapshot_download`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, dict[str, Any]()

    def __call__(self, name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if revision not in (None, "v1"):
            raise FileNotFoundError(f"no revision {revision}")
        self.asked = {"name": name, "revision": revision, "code": "*.py" in allow_patterns}
        return str(self.folder)


def test_a_revision_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, state_dir = FakeHub(save_llama(tmp_path / "tiny")), tmp_path / "state"
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    assert configured_target(configured("a/b", state_dir)) == ResolvedTarget("a/b", hub.folder)
    assert hub.asked == {"name": "a/b", "revision": None, "code": False}
    trusting = configured("a/b", state_dir, revision="v1", trust_remote_code=True)
    assert configured_target(trusting) == ResolvedTarget("a/b@v1", hub.folder)
    assert hub.asked == {"name": "a/b", "revision": "v1", "code": True}
    with pytest.raises(OsdError, match=r"cannot get 'a/b' \(revision 'v2'\) from the model hub: no revision v2"):
        configured_target(configured("a/b", state_dir, revision="v2"))


@pytest.mark.parametrize("name", ["smollm2", "."])
def test_a_revision_is_of_a_hub_id_only(name: str, tmp_path: Path) -> None:
    with pytest.raises(OsdError, match=f"target.revision is 'v1', but {name} is no hub id"):
        configured_target(configured(name, tmp_path, revision="v1"))
