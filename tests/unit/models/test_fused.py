"""The fused pass: which models take it, that it follows their weights, and that a wrong one is not used.

That its logits are the plain model's is shown in test_slot_model.py, whose families take it.
"""

from __future__ import annotations

import copy
from typing import Any

import psutil
import pytest
import torch
import transformers
from torch import Tensor

import osd.kernels.reference.attention as attention
from osd.kernels.backend import Backend
from osd.kernels.cpu.arguments import Array
from osd.kernels.cpu.backend.layers import CompiledLayers
from osd.kernels.cpu.products import codes
from osd.kernels.cpu.tiled_cache import TiledCache
from osd.kernels.reference.flat_cache import FlatCache
from osd.kernels.reference.window import PassWindow
from osd.models.slot_model import SlotModel
from osd.records.errors import OsdError
from tests.kit.backends import TORCH, fastest
from tests.kit.engine_kit import plain_logits
from tests.kit.rounding import decoder_gap, gap_of_rows
from tests.kit.small_shape import SMALL_SHAPE

_IDS = torch.arange(3, 15)


def _llama(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(SMALL_SHAPE | changes)))
    return model.to(dtype).eval()


def _slots(model: Any, *, frozen: bool = False, is_int4: bool = False, backend: Backend | None = None) -> SlotModel:
    return SlotModel(
        model,
        backend or fastest(),
        num_slots=2,
        max_context_tokens=64,
        max_new_tokens=16,
        frozen=frozen,
        is_int4=is_int4,
    )


def _logits(slots: SlotModel) -> Tensor:
    logits_BQV = slots.forward(0, _IDS[None], [0]).logits_BQV
    assert logits_BQV is not None
    return logits_BQV[0]


def _exact_logits(model: Any) -> Tensor:
    """In float64, of the weights that the model has now."""
    return plain_logits(copy.deepcopy(model).double(), _IDS.tolist())


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_families_that_take_it(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(**SMALL_SHAPE)
    assert _slots(getattr(transformers, f"{name}ForCausalLM")(config).eval()).is_fused


@pytest.mark.parametrize(
    "change",
    [{"hidden_act": "gelu"}, {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}}],
)
def test_models_of_another_shape_take_transformers_own_pass(change: dict[str, Any]) -> None:
    model = _llama(**change)
    slots = _slots(model)
    assert not slots.is_fused
    torch.testing.assert_close(_logits(slots), plain_logits(model, _IDS.tolist()), atol=1e-4, rtol=1e-4)


def test_biases_are_fused_too() -> None:
    model = _llama(attention_bias=True, mlp_bias=True)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    slots = _slots(model)
    assert slots.is_fused
    torch.testing.assert_close(_logits(slots), plain_logits(model, _IDS.tolist()), atol=1e-4, rtol=1e-4)


def _unturned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return heads


def _untouched(layers: CompiledLayers, x_RH: Array, window: PassWindow) -> Array:
    return x_RH


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("is_compiled", "dtype"), [(False, torch.float32), (True, torch.float32), (True, torch.bfloat16)]
)
def test_a_fused_pass_that_differs_is_not_used(
    is_compiled: bool, dtype: torch.dtype, frozen: bool, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The model gets its weights back, wherever they were."""
    if is_compiled:
        monkeypatch.setattr(CompiledLayers, "__call__", _untouched)
    else:
        monkeypatch.setattr(attention, "rotate", _unturned)
    model = _llama(dtype, attention_bias=True)
    exact = _exact_logits(model)
    slots = _slots(model, frozen=frozen, backend=fastest() if is_compiled else TORCH)
    assert not slots.is_fused
    assert "the fused pass is not used for LlamaForCausalLM" in caplog.text
    assert gap_of_rows(_logits(slots), exact) < decoder_gap(dtype, num_layers=2, num_terms=48)


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Qwen3"])
def test_without_a_compiler_torch_does_it(name: str) -> None:
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SMALL_SHAPE)).eval()
    slots = _slots(model, frozen=True, backend=TORCH)
    assert slots.is_fused
    torch.testing.assert_close(_logits(slots), plain_logits(model, _IDS.tolist()), atol=1e-4, rtol=1e-4)


def test_an_odd_number_of_inputs() -> None:
    """Compiled products take bfloat16 in pairs."""
    model = _llama(torch.bfloat16, intermediate_size=47)
    exact = _exact_logits(model)
    slots = _slots(model, frozen=True)
    assert slots.is_fused
    assert gap_of_rows(_logits(slots), exact) < decoder_gap(torch.bfloat16, num_layers=2, num_terms=47)


def test_it_follows_weights_that_are_loaded_later() -> None:
    """A `model` drafter's are swapped in place."""
    model, other = _llama(), _llama(seed=1)
    slots = _slots(model)
    model.load_state_dict(other.state_dict())
    slots.weights_changed()
    torch.testing.assert_close(_logits(slots), plain_logits(other, _IDS.tolist()), atol=1e-4, rtol=1e-4)


def test_packed_weights_follow_a_swap() -> None:
    model, other = _llama(torch.bfloat16), _llama(torch.bfloat16, seed=1)
    slots = _slots(model)
    for weights in (other, _llama(torch.bfloat16, seed=2)):
        model.load_state_dict(weights.state_dict())
        slots.weights_changed()
        expected = _slots(weights, frozen=True)
        assert torch.equal(_logits(slots), _logits(expected))


def test_frozen_weights_are_kept_once_and_the_embedding_stays() -> None:
    live, model = _slots(_llama(torch.bfloat16)), _llama(torch.bfloat16)
    frozen = _slots(model, frozen=True)
    torch.testing.assert_close(_logits(frozen), _logits(live), atol=0.05, rtol=0.05)
    assert model.model.layers[0].self_attn.q_proj.weight.numel() == 0
    assert model.get_input_embeddings().weight.shape == model.get_output_embeddings().weight.shape == (64, 32)


def test_frozen_or_not_the_products_are_the_same() -> None:
    live, frozen = _slots(_llama()), _slots(_llama(), frozen=True)
    assert torch.equal(_logits(frozen), _logits(live))


def test_int4_is_the_model_of_the_nearest_four_bit_weights() -> None:
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    model, rounded = (_llama(torch.bfloat16, **shape) for _ in "ab")
    for layer in rounded.model.layers:
        for linear in (one for one in layer.modules() if isinstance(one, torch.nn.Linear)):
            linear.weight.data.copy_(codes.rounded(linear.weight, 4))
    slots = SlotModel(
        model, fastest(), num_slots=2, max_context_tokens=64, max_new_tokens=16, frozen=True, is_int4=True
    )
    expected = plain_logits(rounded, _IDS.tolist())
    gap = (_logits(slots).float() - expected).norm() / expected.norm()
    assert gap < 0.03
    exact = plain_logits(_llama(torch.bfloat16, **shape), _IDS.tolist())
    assert (expected - exact).norm() / exact.norm() > 0.05  # the test can tell them apart


@pytest.mark.parametrize(
    ("dtype", "changes"), [(torch.float32, {}), (torch.bfloat16, {"intermediate_size": 48}), (torch.bfloat16, None)]
)
def test_int4_where_it_cannot_be(dtype: torch.dtype, changes: dict[str, Any] | None) -> None:
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96} | (changes or {"hidden_act": "gelu"})
    if dtype == torch.float32:
        shape["hidden_act"] = "silu"
    with pytest.raises(OsdError, match="target.dtype int4 needs a Llama-shaped model.*LlamaForCausalLM.*take auto"):
        _slots(_llama(dtype, **shape), frozen=True, is_int4=True)


def test_rows_that_are_not_written_take_no_memory() -> None:
    before_bytes = psutil.Process().memory_info().rss
    cache = FlatCache(30, 8, 2304, 3, 64, like=torch.zeros(1, dtype=torch.bfloat16))  # 424 MB when full
    assert psutil.Process().memory_info().rss - before_bytes < 100e6
    window = PassWindow(torch.device("cpu"))
    window.set(1, [7], 2)
    [first, *_] = cache.at(window)
    first.write(torch.ones(1, 2, 6, 64, dtype=torch.bfloat16))
    assert first.keys_BMLD.shape == (1, 3, 9, 64)
    assert first.keys_BMLD[0, :, 7:].eq(1).all() and first.values_BMLD[0, :, :7].eq(0).all()


def test_a_row_takes_memory_as_far_as_it_is_filled() -> None:
    """Of two kinds of pages, the small ones: calibration alone writes a little into every row."""
    before_bytes = psutil.Process().memory_info().rss
    shape, like = (30, 8, 2304, 3, 64), torch.zeros(1, dtype=torch.bfloat16)
    flat, tiled = FlatCache(*shape, like=like), TiledCache(*shape, like=like)
    flat.all[:, :, :, :2] = 1
    tiled.keys_ASMCKW[:, :, :, 0] = 1
    tiled.values_ASMHTW[:, :, :, :, :16] = 1
    assert psutil.Process().memory_info().rss - before_bytes < 100e6
