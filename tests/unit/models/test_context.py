"""How long rows may get; LongRoPE models are served as far as their rotary factors stay the same."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from osd.assembly.engine import open_engine
from osd.config.drafter import DrafterConfig
from osd.config.settings import Config
from osd.config.target import EngineConfig, TargetConfig
from osd.models.context import longest_context, rotary_boundary
from osd.records.errors import OsdError
from osd.records.query import Request
from tests.kit.engine_kit import make_engine, make_target, model_drafter, perturbed, plain_greedy, run
from tests.kit.saved_models import save_tokenizer
from tests.unit.engine.cases import greedy

_BOUNDARY = 32
_FACTORS = {"short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [2.0, 4.0, 8.0, 16.0]}


def _phi3(vocab_tokens: int = 24) -> Any:
    """Its answers hang on its positions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Phi3ForCausalLM(
            Phi3Config(
                vocab_size=vocab_tokens,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=128,
                original_max_position_embeddings=_BOUNDARY,
                rope_parameters={"rope_type": "longrope", "rope_theta": 100.0, **_FACTORS},
                initializer_range=0.3,
                attn_implementation="sdpa",
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )
    return model.eval().requires_grad_(False)


def test_the_context_ends_where_the_factors_change() -> None:
    config = _phi3().config
    assert rotary_boundary(config) == _BOUNDARY
    assert longest_context(config, 20) == 20
    assert longest_context(config, 100) == longest_context(config, None) == _BOUNDARY


@pytest.mark.parametrize(
    ("config", "boundary"),
    [
        ({}, None),
        ({"rope_parameters": None}, None),
        ({"rope_parameters": {"rope_type": "yarn", "original_max_position_embeddings": 64}}, None),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 64}}, 64),
        ({"rope_parameters": {"type": "longrope"}, "original_max_position_embeddings": 64}, 64),
        (
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 96},
                    "sliding_attention": {"rope_type": "default"},
                }
            },
            96,
        ),
    ],
)
def test_where_factors_change(config: dict[str, Any], boundary: int | None) -> None:
    assert rotary_boundary(SimpleNamespace(**config)) == boundary


def test_answers_depend_neither_on_company_nor_on_chunks() -> None:
    """Up to the boundary, beside rows that reach it: what `generate()` answers, which takes the short factors."""
    model = _phi3()
    target = make_target(copy.deepcopy(model), num_slots=4, context_tokens=100)
    assert target.max_context_tokens == _BOUNDARY
    engine = make_engine(target, model_drafter(perturbed(model, 0.02), target), chunk_tokens=5)
    prompts = [(3, 1, 4), tuple(range(20)), tuple(range(23, 3, -1)), (5,) * 12]
    asked = [
        Request(request_id=str(number), prompt_ids=prompt, params=greedy(60)) for number, prompt in enumerate(prompts)
    ]
    answers = run(engine, asked)
    for request in asked:
        room = _BOUNDARY - len(request.prompt_ids)
        assert answers[request.request_id].ids == plain_greedy(model, request.prompt_ids, room)
    # The next turn begins with what was read for the first.
    prompt = (*prompts[1], *answers["1"].ids[:6], 3)
    again = run(engine, [Request(request_id="again", prompt_ids=prompt, params=greedy(60))])["again"]
    assert again.ids == plain_greedy(model, prompt, _BOUNDARY - len(prompt))
    assert again.stats is not None and again.stats.reused_tokens >= 20


def test_a_longer_context_is_refused_where_it_was_set(tmp_path: Path) -> None:
    folder = tmp_path / "phi3"
    _phi3(save_tokenizer(folder)).save_pretrained(folder)

    def config(**context: int) -> Config:
        return Config(
            state_dir=tmp_path / "state",
            target=TargetConfig(model=str(folder), dtype="float32", device="cpu", threads=1, **context),
            engine=EngineConfig(max_slots=2),
            drafter=DrafterConfig(vocab_tokens=64),
        )

    with pytest.raises(OsdError, match="target.max_context_tokens is 64: Phi3ForCausalLM .* set 32 or less"):
        open_engine(config(max_context_tokens=64))
    assert open_engine(config(max_context_tokens=20)).status().context_tokens == 20
    engine = open_engine(config())
    assert engine.status().context_tokens == engine.codec.context_tokens == _BOUNDARY
    assert engine.status().context.startswith(f"context {_BOUNDARY} tokens: Phi3ForCausalLM changes its rotary factors")
