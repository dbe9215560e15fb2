"""Drafters that do not fit their target are refused, before anything of them is loaded or served."""

from __future__ import annotations

from pathlib import Path

import pytest

from osd.config.settings import load_config
from osd.drafters.create import check_drafter_model, open_drafter
from osd.kernels.reference.drafting.feature_net import FeatureConfig
from osd.records.errors import OsdError
from tests.kit.backends import TORCH
from tests.kit.engine_kit import make_target, tiny_llama
from tests.kit.saved_models import save_llama


@pytest.mark.parametrize(
    ("name", "other", "said"),
    [
        ("shifted", {"shift": 5}, "has another tokenizer than the target"),
        ("bigger", {"extra_tokens": 3}, "has 260 tokens, the target 257"),
    ],
)
def test_a_drafter_model_of_another_tokenizer(tmp_path: Path, name: str, other: dict[str, int], said: str) -> None:
    target, drafter = save_llama(tmp_path / "tiny"), save_llama(tmp_path / name, **other)
    config = load_config(flags={"state_dir": tmp_path, "drafter": {"kind": "model", "model": str(drafter)}})
    with pytest.raises(OsdError, match=f"{name}' {said}"):
        check_drafter_model(config, target)
    same = load_config(flags={"state_dir": tmp_path, "drafter": {"kind": "model", "model": str(target)}})
    assert check_drafter_model(same, target) == target


def test_a_drafter_made_for_another_hidden_size(tmp_path: Path) -> None:
    target = make_target(tiny_llama(0), backend=TORCH)
    config = load_config(flags={"state_dir": tmp_path})
    made_for_another = FeatureConfig.for_target(48, target.lm.vocab_tokens, 16, 8)
    with pytest.raises(OsdError, match="hidden size 48, this one has 32; run `osd drafter init`"):
        open_drafter(config, made_for_another.as_dict(), target, tmp_path, TORCH)
