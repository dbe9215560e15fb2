"""Models are loaded with torch's attention, but for architectures that it would compute wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, MambaConfig

from osd.loading.causal_lm import attention_for, load_causal_lm
from osd.models.slot_model import SlotModel
from tests.kit.backends import fastest
from tests.kit.saved_models import save_tokenizer


def test_what_transformers_has_torch_attention_for_takes_it() -> None:
    assert attention_for(LlamaConfig()) == "sdpa"
    assert attention_for(Gemma2Config()) == "eager"  # it caps its scores
    assert attention_for(MambaConfig()) == "eager"  # there is none at all: the check at the start refuses it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_caps_its_scores_is_loaded_and_served(tmp_path: Path, dtype: torch.dtype) -> None:
    config = Gemma2Config(
        vocab_size=save_tokenizer(tmp_path),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        attn_logit_softcapping=2.0,
        sliding_window=6,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    model = load_causal_lm(tmp_path, dtype=dtype, device=torch.device("cpu"))
    assert model.config._attn_implementation == "eager"
    assert not SlotModel(model, fastest(), num_slots=2, max_context_tokens=40, max_new_tokens=16).is_fused
