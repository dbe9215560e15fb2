"""Creates drafters: a new drafter's initial weights, and the object that serves a version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osd.config.settings import Config
from osd.drafters.feature import FeatureDrafter
from osd.drafters.model import ModelDrafter
from osd.drafters.weights import model_state
from osd.kernels.backend import Backend
from osd.kernels.reference.drafting.eagle3_net import Eagle3Config, Eagle3Net, default_layers
from osd.kernels.reference.drafting.feature_net import FeatureConfig, FeatureNet
from osd.loading.causal_lm import attention_for, load_causal_lm
from osd.loading.resolve import resolve_target
from osd.loading.shared_rows import load_shared_rows
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
        feature_config = feature_config_for(config, target_folder)
        net = FeatureNet(feature_config)
        net.reset_parameters(config.drafter.seed)
        return feature_config.as_dict(), net.state_dict()
    if config.drafter.kind == "eagle3":
        eagle3_config = eagle3_config_for(config, target_folder)
        eagle3_net = Eagle3Net(eagle3_config)
        trusts = config.target.trust_remote_code
        head_VH = load_shared_rows(target_folder, torch.float32, trust_remote_code=trusts).head_VH
        eagle3_net.reset_parameters(config.drafter.seed, head_VH[eagle3_net.vocab_ids_R])
        return eagle3_config.as_dict(), eagle3_net.state_dict()
    model = new_drafter_model(config, target_folder)
    return model.config.to_dict(), model_state(model)


def feature_config_for(config: Config, target_folder: Path) -> FeatureConfig:
    """The sizes of a `feature` drafter for a target."""
    from transformers import AutoConfig

    drafter, trusts = config.drafter, config.target.trust_remote_code
    target = AutoConfig.from_pretrained(target_folder, trust_remote_code=trusts).get_text_config()
    return FeatureConfig.for_target(target.hidden_size, target.vocab_size, drafter.vocab_tokens, drafter.window_tokens)


def eagle3_config_for(config: Config, target_folder: Path) -> Eagle3Config:
    """The sizes of a new `eagle3` drafter for a target: its heads, and the layers that EAGLE-3 reads by default."""
    from transformers import AutoConfig

    drafter, trusts = config.drafter, config.target.trust_remote_code
    target = AutoConfig.from_pretrained(target_folder, trust_remote_code=trusts).get_text_config()
    rope = getattr(target, "rope_parameters", None) or {}
    return Eagle3Config(
        hidden_size=target.hidden_size,
        target_hidden_size=target.hidden_size,
        target_layers=default_layers(target.num_hidden_layers),
        num_heads=target.num_attention_heads,
        num_key_heads=getattr(target, "num_key_value_heads", None) or target.num_attention_heads,
        head_size=getattr(target, "head_dim", None) or target.hidden_size // target.num_attention_heads,
        intermediate_size=3 * target.hidden_size,
        vocab_tokens=min(drafter.vocab_tokens, target.vocab_size),
        target_vocab_tokens=target.vocab_size,
        norm_eps=1e-6,
        rope={"rope_type": "default", "rope_theta": rope.get("rope_theta", 10_000.0)},
        max_positions=target.max_position_embeddings,
    )


def new_drafter_model(config: Config, target_folder: Path) -> Any:
    """The causal LM of a `model` drafter, float32 on the CPU: the configured one, or else the target's first layers.

    Raises:
        OsdError: it cannot be loaded, or its vocabulary differs from the target's.
    """
    if not config.drafter.model:
        return _first_layers(target_folder, config.drafter.layers, config.target.trust_remote_code)
    folder = check_drafter_model(config, target_folder)
    trusts = config.target.trust_remote_code
    return load_causal_lm(folder, dtype=torch.float32, device=torch.device("cpu"), trust_remote_code=trusts)


def check_drafter_model(config: Config, target_folder: Path) -> Path:
    """Check, without loading it, that the configured causal LM shares the target's tokenizer; returns its folder.

    Raises:
        OsdError: it cannot be found, or its vocabulary differs from the target's.
    """
    from transformers import AutoConfig, AutoTokenizer

    name, trusts = config.drafter.model, config.target.trust_remote_code
    folders = (resolve_target(name, config.state_dir, trust_remote_code=trusts).folder, target_folder)
    configs = (AutoConfig.from_pretrained(folder, trust_remote_code=trusts) for folder in folders)
    ours, theirs = (one.get_text_config().vocab_size for one in configs)
    if ours != theirs:
        raise OsdError(
            f"drafter {name!r} has {ours} tokens, the target {theirs}: a drafter must share the target's tokenizer"
        )
    tokenizers = (AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts) for folder in folders)
    our_ids, their_ids = (tokenizer.get_vocab() for tokenizer in tokenizers)
    if our_ids != their_ids:
        raise OsdError(f"drafter {name!r} has another tokenizer than the target; a drafter must share it")
    return folders[0]


def open_drafter(
    config: Config,
    manifest_config: dict[str, Any],
    target: Target,
    target_folder: Path,
    backend: Backend,
    name: str = "",
) -> Drafter:
    """The drafter for a version's configuration; its weights are loaded afterwards.

    Args:
        config: the whole configuration.
        manifest_config: the version's.
        target: the model that is served.
        target_folder: its files.
        backend: computes the drafter's rounds.
        name: see `DrafterId`; empty: the base drafter's.

    Raises:
        OsdError: the configuration does not fit the target.
    """
    num_slots, max_length = config.engine.max_slots, config.speculation.max_length
    if config.drafter.kind != "model":
        chain_config = chain_config_of(config.drafter.kind, manifest_config)
        _check_hidden_states(chain_config, target)
        return FeatureDrafter(
            chain_config,
            target.shared_rows(),
            backend,
            num_slots=num_slots,
            max_context_tokens=target.max_context_tokens,
            max_length=max_length,
            name=name or config.drafter.kind,
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
        name=name or config.drafter.kind,
    )


def chain_config_of(kind: str, manifest_config: Mapping[str, Any]) -> FeatureConfig | Eagle3Config:
    """The configuration of a `feature` or `eagle3` drafter in a manifest."""
    return FeatureConfig(**manifest_config) if kind == "feature" else Eagle3Config(**manifest_config)


def _check_hidden_states(config: FeatureConfig | Eagle3Config, target: Target) -> None:
    """Check that the target stores the hidden states that a drafter reads.

    Raises:
        OsdError: it was made for another target, or reads other layers.
    """
    is_eagle3 = isinstance(config, Eagle3Config)
    made_for = config.target_hidden_size if isinstance(config, Eagle3Config) else config.hidden_size
    if made_for != target.lm.hidden_size:
        raise OsdError(
            f"the drafter was made for a target of hidden size {made_for}, this one has {target.lm.hidden_size}; run "
            f"`osd drafter {'import' if is_eagle3 else 'init'}` with another --state-dir"
        )
    layers = tuple(config.target_layers) if isinstance(config, Eagle3Config) else ()
    if layers != target.hidden_layers:
        raise OsdError(f"the drafter reads layers {layers} of the target, which stores {target.hidden_layers}: restart")


def _first_layers(target_folder: Path, num_layers: int, trusts: bool) -> Any:
    """A small LM made of the target's embedding, first layers and head, which drafts far better than random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(target_folder, trust_remote_code=trusts)
    text = config.get_text_config()
    text.num_hidden_layers = min(num_layers, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[: text.num_hidden_layers]
    model = AutoModelForCausalLM.from_pretrained(
        target_folder,
        config=config,
        dtype=torch.float32,
        attn_implementation=attention_for(config),
        trust_remote_code=trusts,
    )
    return model.eval().requires_grad_(False)
