"""A head's way through osd: imported by the command, served, recorded, trained on, swapped in, exported, imported."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from osd.assembly.drafter import open_store
from osd.assembly.engine import load_engine
from osd.assembly.kernels import Prepared
from osd.config.settings import Config, load_config
from osd.engine.engine import Engine
from osd.engine.loop import EngineLoop
from osd.loading.resolve import resolve_target
from osd.ports.drafter import Swappable
from osd.records.events import Event
from osd.records.outcome import Outcome
from osd.records.outcome_arrays import check_shapes, hidden_states
from osd.records.query import Request, SamplingParams, TokenDelta
from osd.swap.hot_swap import HotSwap
from osd.swap.local_engine import LocalEngine
from tests.kit.backends import TORCH
from tests.kit.cli_kit import the_error
from tests.kit.eagle3_heads import head_config, save_head
from tests.kit.engine_kit import Answers, ListRecorder, plain_greedy, run
from tests.kit.saved_models import save_llama
from tests.kit.trainer_fakes import FakeSource
from trainer.build import build_trainer

_PROMPTS = [(3, 1, 4), (2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5), (5,), tuple(range(40))]
_MAX_TOKENS = 24
_LAYERS = [0, 1, 1]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def head(target: Path, tmp_path: Path) -> Path:
    vocab_tokens = json.loads((target / "config.json").read_text())["vocab_size"]
    return save_head(tmp_path / "head", head_config(vocab_size=vocab_tokens, draft_vocab_size=200))


def _config(target: Path, state_dir: Path) -> Config:
    return load_config(
        flags={
            "state_dir": state_dir,
            "target": {"model": str(target), "dtype": "float32", "device": "cpu", "max_context_tokens": 96},
            "engine": {"max_slots": 3},
            "speculation": {"fixed_length": 3},
            "drafter": {"kind": "eagle3", "suffix": False},
            "outcomes": {"top_k": 16, "prompt_hidden_tokens": 8},
            "trainer": {
                "device": "cpu",
                "first_version_share": 0.0,  # it is random
                "learning_rate": 3e-3,
                "warmup_steps": 0,
                "min_records": 2,
                "batch_tokens": 256,
                "gate_every_steps": 20,
                "held_out_share": 0.3,
            },
        }
    )


def _engine(config: Config, recorder: ListRecorder | None = None) -> Engine:
    """The engine that `osd serve` makes, on the reference back end, so that nothing has to be compiled."""
    resolved = resolve_target(config.target.model, config.state_dir)
    store = open_store(config, resolved)
    return load_engine(config, resolved, Prepared(TORCH, None), store, recorder=recorder, on_event=lambda event: None)


def _requests(num: int = len(_PROMPTS), **options: Any) -> list[Request]:
    params = SamplingParams(temperature=0.0, max_tokens=_MAX_TOKENS, **options)
    return [Request(request_id=f"r{n}", prompt_ids=_prompt(n), params=params) for n in range(num)]


def _prompt(number: int) -> tuple[int, ...]:
    """Eight prompts over and over, so that some of what is held out can be known."""
    turn, index = divmod(number, len(_PROMPTS))
    return tuple(token + turn % 2 for token in _PROMPTS[index])


def _proposals(answers: Answers, recorder: ListRecorder) -> list[list[tuple[int, int]]]:
    """Of each round of each query, how many tokens were proposed and accepted."""
    return [[(one.proposed, one.accepted) for one in recorder.outcomes[name].rounds] for name in sorted(answers)]


@pytest.fixture
def imported(osd: Any, target: Path, head: Path, tmp_path: Path) -> Config:
    status, out, err = osd("drafter", "import", head, "--target", target, "--state-dir", tmp_path / "state")
    assert status == 0 and "version 1 of the eagle3 drafter for tiny" in out and "layers 0, 1, 1" in out, err
    assert "--drafter eagle3" in out
    return _config(target, tmp_path / "state")


def test_answers_are_the_targets_and_outcomes_carry_what_it_reads(imported: Config, target: Path) -> None:
    recorder = ListRecorder()
    engine = _engine(imported, recorder)
    assert (engine.status().drafter_kind, engine.status().drafter_version) == ("eagle3", 1)
    answers = run(engine, _requests())
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    proposed = 0
    for request in _requests():
        answer, outcome = answers[request.request_id], recorder.outcomes[request.request_id]
        assert answer.ids == plain_greedy(model, request.prompt_ids, _MAX_TOKENS)
        proposed += sum(one.proposed for one in outcome.rounds)
        _check_outcome(outcome, model)
    assert proposed > 3 * _MAX_TOKENS


def _check_outcome(outcome: Outcome, model: Any) -> None:
    check_shapes(outcome)
    num_prompt, num_read = len(outcome.prompt_ids), len(outcome.prompt_ids) + len(outcome.output_ids) - 1
    assert (outcome.drafter_kind, outcome.hidden_size) == ("eagle3", 96)
    assert outcome.hidden_start == max(num_prompt - 8, 0)
    # The bound that docs/eagle3.md states: two bytes a number, and no more positions than are kept.
    assert len(outcome.hidden) <= 2 * 96 * (8 + _MAX_TOKENS - 1)
    with torch.no_grad():
        ids = torch.tensor([[*outcome.prompt_ids, *outcome.output_ids]])
        entering = model(ids, output_hidden_states=True).hidden_states
    right_LJ = torch.cat([entering[layer][0] for layer in _LAYERS], dim=-1)[outcome.hidden_start : num_read]
    hidden_NJ = hidden_states(outcome)
    assert hidden_NJ is not None
    torch.testing.assert_close(hidden_NJ.float(), right_LJ, atol=2e-2, rtol=1e-2)


def test_it_learns_and_goes_on_elsewhere(osd: Any, imported: Config, target: Path, tmp_path: Path) -> None:
    """Trained on what it served, published through the gate, swapped in, exported, imported: the same proposals."""
    resolved = resolve_target(imported.target.model, imported.state_dir)
    store, source, recorder = open_store(imported, resolved), FakeSource(), ListRecorder()
    engine = _engine(imported, recorder)
    answers = run(engine, _requests(32))
    for outcome in recorder.outcomes.values():
        source.put(outcome)
    trainer = build_trainer(imported, target, store, source, target_id="tiny")
    for _ in range(41):
        trainer.run_once()
    latest = store.latest()
    assert latest is not None and latest.number > 1, trainer.status()

    manifest, state = store.load(latest.number)
    drafter = engine.policy.arms[0].drafter
    assert isinstance(drafter, Swappable)
    engine.load_drafter(drafter.id.name, manifest, drafter.prepare(state, manifest.number))
    before = _proposals(answers, recorder)
    adapted = run(engine, _requests(32))
    assert {name: answer.ids for name, answer in adapted.items()} == {n: answer.ids for n, answer in answers.items()}
    assert engine.status().drafter_version == latest.number
    learnt = _proposals(adapted, recorder)
    assert sum(len(rounds) for rounds in learnt) < 0.95 * sum(len(rounds) for rounds in before)

    options = ("--target", target, "--state-dir")
    out = tmp_path / "exported"
    assert osd("drafter", "export", out, "--dtype", "float32", *options, imported.state_dir)[0] == 0
    assert osd("drafter", "import", out, *options, tmp_path / "elsewhere")[0] == 0
    elsewhere = ListRecorder()
    again = run(_engine(_config(target, tmp_path / "elsewhere"), elsewhere), _requests(32))
    assert _proposals(again, elsewhere) == learnt


def test_another_version_is_swapped_in_while_it_serves(imported: Config, target: Path) -> None:
    """Queries are answered on the engine's own thread meanwhile."""
    store = open_store(imported, resolve_target(imported.target.model, imported.state_dir))
    manifest, state = store.load(1)
    changed, answers = threading.Condition(), Answers()
    events: list[Event] = []

    def deliver(deltas: list[TokenDelta]) -> None:
        with changed:
            answers.add(deltas)
            changed.notify_all()

    loop = EngineLoop(_engine(imported), deliver)
    hot_swap = HotSwap(lambda name: store, LocalEngine(loop), retry_s=60.0, on_event=events.append)
    loop.start()
    try:
        for request in _requests(8):
            loop.submit(request)
        with changed:
            assert changed.wait_for(lambda: bool(answers), 60)
        newer = {**state, "fc.weight": 0.9 * state["fc.weight"]}
        number = store.publish(newer, kind="eagle3", config=manifest.config, parent=1).number
        hot_swap.order({"eagle3": number})
        hot_swap.obey()
        assert loop.status().drafter_version == number == 2 and not hot_swap.refused()
        with changed:
            assert changed.wait_for(lambda: sum(one.finish_reason is not None for one in answers.values()) == 8, 60)
    finally:
        loop.stop()
    assert events == []
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    for request in _requests(8):
        assert answers[request.request_id].ids == plain_greedy(model, request.prompt_ids, _MAX_TOKENS)


def test_the_exported_files_are_those_that_vllm_and_sglang_load(
    osd: Any, imported: Config, target: Path, head: Path, tmp_path: Path
) -> None:
    out = tmp_path / "exported"
    status, told, err = osd("drafter", "export", out, "--target", target, "--state-dir", imported.state_dir)
    assert status == 0 and "version 1" in told, err
    with safe_open(head / "model.safetensors", framework="pt") as file:
        given = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        written = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    assert written.keys() == given.keys()
    for name, tensor in given.items():
        right = tensor.bfloat16() if tensor.is_floating_point() else tensor
        assert torch.equal(written[name], right) and written[name].dtype == right.dtype, name
    assert (written["d2t"].dtype, written["t2d"].dtype) == (torch.int64, torch.bool)
    raw = json.loads((out / "config.json").read_text())
    wanted = json.loads((head / "config.json").read_text())
    assert {name: raw[name] for name in wanted} == wanted
    assert raw["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [layer - 1 for layer in _LAYERS]


def test_what_the_commands_refuse(osd: Any, imported: Config, target: Path, head: Path, tmp_path: Path) -> None:
    options = ("--target", target, "--state-dir")
    assert "already (version 1)" in the_error(osd("drafter", "import", head, *options, imported.state_dir))
    save_head(tmp_path / "foreign")
    foreign = the_error(osd("drafter", "import", tmp_path / "foreign", *options, tmp_path / "new"))
    assert "vocabulary of 24 tokens" in foreign and str(tmp_path / "foreign") in foreign
    assert "no eagle3 drafter" in the_error(osd("drafter", "export", tmp_path / "out", *options, tmp_path / "new"))
    (tmp_path / "file").write_text("")
    assert "give a folder" in the_error(osd("drafter", "export", tmp_path / "file", *options, imported.state_dir))
    unknown = the_error(osd("drafter", "export", tmp_path / "out", "--version", 9, *options, imported.state_dir))
    assert "9" in unknown


def test_a_new_one_needs_no_head(osd: Any, target: Path, tmp_path: Path) -> None:
    """Untrained, over the layers that EAGLE-3 reads by default as far as the target has them; it serves losslessly."""
    options = ("--target", target, "--drafter", "eagle3", "--state-dir", tmp_path / "state")
    status, out, err = osd("drafter", "init", *options)
    assert status == 0 and "untrained" in out, err
    answers = run(_engine(_config(target, tmp_path / "state")), _requests())
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    for request in _requests():
        assert answers[request.request_id].ids == plain_greedy(model, request.prompt_ids, _MAX_TOKENS)
