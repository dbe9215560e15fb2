"""A target stores what enters chosen layers of any model, by transformers' own forward too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from osd.models.target import Target
from osd.records.errors import OsdError
from tests.kit.backends import TORCH, Undecoded
from tests.kit.engine_kit import make_target, tiny_llama
from tests.kit.small_shape import SMALL_SHAPE

_SHAPE: dict[str, Any] = SMALL_SHAPE | {"vocab_size": 32}
_MAKERS: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_SHAPE)),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **_SHAPE, head_dim=8, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
        )
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**_SHAPE)),
}


def _fill(target: Target, ids: list[int]) -> None:
    target.write_tokens(0, 0, ids)
    for start, stop in ((0, 5), (5, len(ids))):
        target.read(0, torch.tensor([ids[start:stop]]), [start], logits="none")


@pytest.mark.parametrize("kind", list(_MAKERS))
def test_any_models_layers(kind: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _MAKERS[kind]().eval().requires_grad_(False)
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    right = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    target = make_target(model, backend=Undecoded(), hidden_layers=(1, 0))
    assert not target.lm.is_fused
    _fill(target, ids)
    right_LJ = torch.cat((right[1], right[0]), dim=-1)[0]
    torch.testing.assert_close(target.copy_hidden(0, 0, len(ids))(), right_LJ, rtol=1e-4, atol=1e-4)
    assert target.lm.hidden_size == model.config.hidden_size


def test_rows_that_change_places_keep_them() -> None:
    target = make_target(tiny_llama(), backend=TORCH, hidden_layers=(1, 0, 1))
    _fill(target, [3, 1, 4, 1, 5, 9])
    before = target.copy_hidden(0, 0, 6)().clone()
    assert before.shape == (6, 96) and bool(before.any())
    target.copy_row(0, 2, 4)
    target.swap_rows(0, 1, 6)
    assert torch.equal(target.copy_hidden(1, 0, 6)(), before)
    assert torch.equal(target.copy_hidden(2, 0, 4)(), before[:4])
    other = make_target(tiny_llama(), backend=TORCH, hidden_layers=(1, 0, 1))
    other.adopt(target, [0, 6, 4, 0])
    assert torch.equal(other.copy_hidden(1, 0, 6)(), before)


@pytest.mark.parametrize("layer", [-1, 2])
def test_a_layer_that_the_target_does_not_have_is_refused(layer: int) -> None:
    with pytest.raises(OsdError, match=f"enters layer {layer} of the target, which has layers 0 to 1"):
        make_target(tiny_llama(), backend=TORCH, hidden_layers=(0, layer))
