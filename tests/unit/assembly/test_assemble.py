"""An engine put together from a configuration alone, as a program that imports osd does it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from transformers import AutoModelForCausalLM

from osd.assembly.assemble import _remake
from osd.assembly.drafter import DomainDrafters, open_store
from osd.assembly.engine import open_engine
from osd.assembly.kernels import Prepared
from osd.config.drafter import DrafterConfig, SpeculationConfig
from osd.config.settings import Config
from osd.config.target import EngineConfig, TargetConfig
from osd.drafters.create import open_drafter
from osd.io.domains.listed import open_domains
from osd.io.weight_store import FileWeightStore
from osd.kernels.cpu.compiling.signatures import KernelSet
from osd.loading.resolve import resolve_target
from osd.records.drafter_id import DrafterId
from osd.records.errors import OsdError, WeightsRefusedError
from osd.records.query import Request, SamplingParams
from osd.speculation.cost import Costs
from osd.text.stream import unfinished_end
from tests.kit.backends import TORCH
from tests.kit.engine_kit import plain_greedy
from tests.kit.saved_models import save_llama
from tests.kit.stores import weights_dir

_GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tiny")


def _config(folder: Path, state_dir: Path, kind: Literal["feature", "model"] = "feature") -> Config:
    return Config(
        state_dir=state_dir,
        target=TargetConfig(model=str(folder), dtype="float32", device="cpu", threads=1, max_context_tokens=64),
        engine=EngineConfig(max_slots=2),
        drafter=DrafterConfig(kind=kind, vocab_tokens=64, layers=1),
    )


def _store(config: Config) -> FileWeightStore:
    return open_store(config, resolve_target(config.target.model, config.state_dir))


def _text(engine: Any, prompt: str) -> str:
    return "".join(delta.text for delta in engine.generate([prompt], _GREEDY))


@pytest.mark.parametrize("kind", ["feature", "model"])
def test_what_is_made_again_when_kernels_are_ready_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Literal["feature", "model"]
) -> None:
    """Beside the first, of the same model in memory and of the version that serves. Kernels themselves are left out."""
    monkeypatch.setattr("osd.assembly.engine.prepare_backend", lambda *args, **options: Prepared(TORCH, None))
    monkeypatch.setattr("osd.assembly.assemble.load_backend", lambda these: TORCH)
    config = _config(folder, tmp_path, kind)
    engine = open_engine(config)
    store, before = _store(config), engine.target
    manifest, state = store.load(1)
    store.publish(state, kind=kind, config=manifest.config, parent=1)  # not served yet
    places = [weight.data_ptr() for weight in before.lm.model.parameters()]
    prompt = engine.codec.encode_text("hello")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    engine.submit(Request(request_id="r", prompt_ids=prompt, params=_GREEDY))
    found = [token for _ in range(3) for delta in engine.step() for token in delta.token_ids]
    resolved = resolve_target(config.target.model, config.state_dir)
    [arm] = engine.policy.arms
    these = KernelSet(torch.float32, is_threaded=False)
    drafters = DomainDrafters(config, resolved, before.backend)
    target, [drafter] = _remake(config, resolved, drafters, these, before, [arm.drafter])
    assert target is not before and drafter is not arm.drafter
    assert drafter.id.version == 1
    assert [weight.data_ptr() for weight in target.lm.model.parameters()] == places, "weights are held twice"
    engine.take_over(target, [drafter], Costs(engine.policy.verify, (arm.costs,)))
    before.lm.close()
    while engine.has_work:
        found += [token for delta in engine.step() for token in delta.token_ids]
    assert found == plain_greedy(plain, prompt, 12)


@pytest.mark.parametrize("kind", ["feature", "model"])
def test_drafters_of_domains_are_opened_with_the_engine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Literal["feature", "model"]
) -> None:
    monkeypatch.setattr("osd.assembly.engine.prepare_backend", lambda *args, **options: Prepared(TORCH, None))
    config = _config(folder, tmp_path, kind)
    own = config.drafter.model_copy(update={"max_domains": 2, "suffix": False})
    config = config.model_copy(update={"drafter": own, "speculation": SpeculationConfig(fixed_length=2)})
    resolved = resolve_target(config.target.model, config.state_dir)
    base = open_engine(config)
    assert [arm.name for arm in base.policy.all_arms] == [kind]
    manifest, state = _store(config).load(1)
    for domain in ("old", "sql", "code", "torn"):
        open_domains(config, resolved.target_id).add(domain)
        versions = open_store(config, resolved, f"{kind}.{domain}")
        versions.publish(state, kind=kind, config=manifest.config, parent=None)
    weights_dir(config.state_dir, resolved.target_id, f"{kind}.torn").joinpath("v000001.safetensors").write_bytes(b"")
    engine = open_engine(config)
    assert [arm.drafter.id for arm in engine.policy.all_arms] == [DrafterId(kind, 1), DrafterId(f"{kind}.code", 1)]
    prompt = engine.codec.encode_text("hello")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for domain in ("code", "sql"):
        engine.submit(Request(request_id=domain, prompt_ids=prompt, params=_GREEDY, domain=domain))
    found: dict[str, list[int]] = {"code": [], "sql": []}
    while engine.has_work:
        for delta in engine.step():
            found[delta.request_id] += delta.token_ids
    assert found["code"] == found["sql"] == plain_greedy(plain, prompt, 12)
    assert {drafter.name for drafter in engine.counters.by_drafter} == {kind, f"{kind}.code"}


def test_a_drafter_of_a_shorter_context_is_refused(folder: Path, tmp_path: Path) -> None:
    """Its rows would end before the target's: what it writes beyond them would be somebody else's memory."""
    drafter = save_llama(tmp_path / "drafter")
    settings = json.loads((drafter / "config.json").read_text())
    (drafter / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 48}))
    config = _config(folder, tmp_path / "state", "model")
    config = config.model_copy(update={"drafter": DrafterConfig(kind="model", model=str(drafter))})
    lm = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)
    target: Any = SimpleNamespace(lm=lm, max_context_tokens=64)
    with pytest.raises(OsdError, match="reads at most 48 tokens, .* holds 64; set target.max_context_tokens to 48"):
        open_drafter(config, {}, target, folder, TORCH)


@pytest.mark.parametrize("kind", ["feature", "model"])
def test_a_few_lines_answer_a_prompt(folder: Path, tmp_path: Path, kind: Literal["feature", "model"]) -> None:
    config = _config(folder, tmp_path, kind)
    engine = open_engine(config)
    answer = _text(engine, "hello")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = plain_greedy(plain, engine.codec.encode_text("hello"), 12)
    unfinished = unfinished_end(b"".join(map(engine.codec.token_bytes, expected)))  # a token a byte
    assert answer == engine.codec.decode(expected[: len(expected) - len(unfinished)])
    latest = _store(config).latest()
    assert latest is not None
    assert (latest.number, latest.kind, latest.note) == (1, kind, "untrained")
    assert engine.status().computes == engine.target.lm.computes
    assert engine.status().computes.startswith("CPU: ") and ", float32 weights by " in engine.status().computes
    assert engine.status().drafter_version == 1
    assert _text(open_engine(config), "hello") == answer
    assert len(_store(config).list()) == 1  # the second engine found the first one's drafter


def test_an_engine_that_restarts_beside_a_torn_version_serves_the_one_before(folder: Path, tmp_path: Path) -> None:
    config = _config(folder, tmp_path)
    open_engine(config)
    store = _store(config)
    first, state = store.load(1)
    for parent in (1, 2):
        store.publish(state, kind=first.kind, config=first.config, parent=parent)
    paths = sorted(tmp_path.glob("weights/**/*.safetensors"))
    assert [path.name for path in paths] == ["v000001.safetensors", "v000002.safetensors", "v000003.safetensors"]
    paths[2].write_bytes(paths[2].read_bytes()[:-10])
    assert open_engine(config).status().drafter_version == 2
    for path in paths[:2]:
        path.write_bytes(b"")
    with pytest.raises(WeightsRefusedError, match="v000003"):
        open_engine(config)
