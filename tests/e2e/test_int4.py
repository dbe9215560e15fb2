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
from osd.records.query import SamplingParams

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


def _answers(engine: Engine) -> list[str]:
    texts = [""] * len(_PROMPTS)
    for delta in engine.generate(_PROMPTS, SamplingParams(temperature=0.0, max_tokens=24)):
        texts[int(delta.request_id)] += delta.text
    return texts


def test_speculation_changes_nothing(tmp_path_factory: pytest.TempPathFactory, num_threads: None) -> None:
    """The very same numbers: rows of a compiled pass do not depend on those beside them."""
    state_dir = tmp_path_factory.mktemp("int4")
    models_dir(state_dir).symlink_to(models_dir(default_state_dir()))
    target = {"dtype": "int4", "threads": 1, "max_context_tokens": 256}
    plain, speculative = (
        open_engine(load_config(None, {"state_dir": state_dir, "target": target, "speculation": speculation}))
        for speculation in ({"enabled": False}, {"fixed_length": 3})
    )
    assert _answers(speculative) == _answers(plain)
    assert speculative.status().counters["accepted_total"] > 0
