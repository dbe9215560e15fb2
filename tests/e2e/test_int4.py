"""int4 of the default target: its file's weights are four-bit codes, and come out of the rounding as they went in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from osd.assembly.engine import open_engine
from osd.config.paths import models_dir
from osd.config.settings import default_state_dir, load_config
from osd.engine.engine import Engine
from osd.kernels.cpu.products.codes import rounded
from osd.loading.causal_lm import load_causal_lm
from osd.loading.resolve import resolve_target
from osd.records.query import Request, SamplingParams

_PROMPTS = ["The first month of the year is", "def add(a, b):\n    return"]


@pytest.fixture
def num_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_no_weight_changes() -> None:
    folder = resolve_target("smollm2", default_state_dir()).folder
    model = load_causal_lm(folder, dtype=torch.bfloat16, device=torch.device("cpu"))
    linears = [one for layer in model.model.layers for one in layer.modules() if isinstance(one, nn.Linear)]
    assert len(linears) == 30 * 7
    assert all(torch.equal(rounded(one.weight, 4), one.weight) for one in linears)


def _answers(engine: Engine, speculation_length: int) -> dict[str, list[int]]:
    """By prompt; each length with a prefix cache of its own."""
    params = SamplingParams(temperature=0.0, max_tokens=24)
    for prompt in _PROMPTS:
        engine.submit(
            Request(
                request_id=prompt,
                prompt_ids=engine.codec.encode_text(prompt),
                params=params,
                speculation_length=speculation_length,
                cache_salt=f"length {speculation_length}",
            )
        )
    answers: dict[str, list[int]] = {prompt: [] for prompt in _PROMPTS}
    while engine.has_work:
        for delta in engine.step():
            answers[delta.request_id].extend(delta.token_ids)
    return answers


def test_speculation_changes_nothing(tmp_path_factory: pytest.TempPathFactory, num_threads: None) -> None:
    """The very same numbers: rows of a compiled pass do not depend on those beside them."""
    state_dir = tmp_path_factory.mktemp("int4")
    models_dir(state_dir).symlink_to(models_dir(default_state_dir()))
    target = {"dtype": "int4", "threads": 1, "max_context_tokens": 256}
    engine = open_engine(load_config(None, {"state_dir": state_dir, "target": target}))
    plain = _answers(engine, 0)
    assert engine.counters.values["proposed_total"] == 0
    assert _answers(engine, 3) == plain
    assert engine.counters.values["accepted_total"] > 0
