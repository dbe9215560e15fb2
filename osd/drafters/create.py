"""Creates drafters: a new drafter's initial weights, and the object that serves a version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osd.config.settings import Config, DrafterConfig
from osd.drafters.feature import FeatureDrafter
from osd.drafters.model import ModelDrafter
from osd.drafters.weights import model_state
from osd.kernels.backend import Backend
from osd.kernels.reference.drafting.feature_net import FeatureConfig, FeatureNet
from osd.loading.causal_lm import load_causal_lm
from osd.loading.resolve import resolve_target
from osd.models.context import longest_context
from osd.models.target import Target
from osd.ports.drafter import Drafter
from osd.records.errors import OsdError


def create_initial(config: Config, target_folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and initial weights of a new drafter, before any training.

    Raises:
        OsdError: the drafter's model cannot be loaded, or its vocabulary differs from the target's.
    """
    if config.drafter.kind == "feature":
        feature_config = feature_config_for(config.drafter, target_folder)
        net = FeatureNet(feature_config)
        net.reset_parameters(config.drafter.seed)
        return feature_config.as_dict(), net.state_dict()
    model = new_drafter_model(config, target_folder)
    return model.config.to_dict(), model_state(model)


def feature_config_for(drafter: DrafterConfig, target_folder: Path) -> FeatureConfig:
    """The sizes of a `feature` drafter for a target."""
    from transformers import AutoConfig

    target = AutoConfig.from_pretrained(target_folder).get_text_config()
    return FeatureConfig.for_target(target.hidden_size, target.vocab_size, drafter.vocab_tokens, drafter.window_tokens)


def new_drafter_model(config: Config, target_folder: Path) -> Any:
    """The causal LM of a `model` drafter, float32 on the CPU: the configured one, or else the target's first layers.

    Raises:
        OsdError: it cannot be loaded, or its vocabulary differs from the target's.
    """
    if not config.drafter.model:
        return _first_layers(target_folder, config.drafter.layers)
    folder = check_drafter_model(config, target_folder)
    return load_causal_lm(folder, dtype=torch.float32, device=torch.device("cpu"))


def check_drafter_model(config: Config, target_folder: Path) -> Path:
    """Check, without loading it, that the configured causal LM shares the target's tokenizer; returns its folder.

    Raises:
        OsdError: it cannot be found, or its vocabulary differs from the target's.
    """
    from transformers import AutoConfig, AutoTokenizer

    name, folders = config.drafter.model, (resolve_target(config.drafter.model, config.state_dir).folder, target_folder)
    ours, theirs = (AutoConfig.from_pretrained(folder).get_text_config().vocab_size for folder in folders)
    if ours != theirs:
        raise OsdError(
            f"drafter {name!r} has {ours} tokens, the target {theirs}: a drafter must share the target's tokenizer"
        )
    our_ids, their_ids = (AutoTokenizer.from_pretrained(folder).get_vocab() for folder in folders)
    if our_ids != their_ids:
        raise OsdError(f"drafter {name!r} has another tokenizer than the target; a drafter must share it")
    return folders[0]


def open_drafter(
    config: Config, manifest_config: dict[str, Any], target: Target, target_folder: Path, backend: Backend
) -> Drafter:
    """The drafter for a version's configuration; its weights are loaded afterwards.

    Raises:
        OsdError: the configuration does not fit the target.
    """
    num_slots, max_length = config.engine.max_slots, config.speculation.max_length
    if config.drafter.kind == "feature":
        feature_config = FeatureConfig(**manifest_config)
        if feature_config.hidden_size != target.lm.hidden_size:
            raise OsdError(
                f"the drafter was made for a target of hidden size {feature_config.hidden_size}, this one has "
                f"{target.lm.hidden_size}; run `osd drafter init` or use another --state-dir"
            )
        return FeatureDrafter(
            feature_config,
            target.shared_rows(),
            backend,
            num_slots=num_slots,
            max_context_tokens=target.max_context_tokens,
            max_length=max_length,
        )
    model = new_drafter_model(config, target_folder).to(target.lm.device, target.lm.dtype)
    most = longest_context(model.config.get_text_config(), target.max_context_tokens)
    if most < target.max_context_tokens:
        raise OsdError(
            f"drafter {config.drafter.model!r} reads at most {most} tokens, and the target's context holds "
            f"{target.max_context_tokens}; set target.max_context_tokens to {most} or less, or take another drafter"
        )
    return ModelDrafter(
        model,
        backend,
        num_slots=num_slots,
        max_context_tokens=target.max_context_tokens,
        target_vocab_tokens=target.lm.vocab_tokens,
    )


def _first_layers(target_folder: Path, num_layers: int) -> Any:
    """A small LM made of the target's embedding, first layers and head, which drafts far better than random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(target_folder)
    text = config.get_text_config()
    text.num_hidden_layers = min(num_layers, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    model = AutoModelForCausalLM.from_pretrained(
        target_folder, config=config, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.eval().requires_grad_(False)
